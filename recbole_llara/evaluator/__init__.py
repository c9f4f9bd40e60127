"""The last stage of the data's way: answers, their metrics, and reports. Imports nothing by itself."""
