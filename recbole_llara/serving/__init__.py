"""Using a trained run: new users' histories in, ranked items out."""

from recbole_llara.serving.loaded import LoadedRun, Recommendation, load

__all__ = ["LoadedRun", "Recommendation", "load"]
