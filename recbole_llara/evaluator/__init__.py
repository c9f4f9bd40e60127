"""The last stage of the data's way: evaluation over candidates, answers, their metrics, and reports."""
