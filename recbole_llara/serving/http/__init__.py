"""A local page that asks finished runs side by side and browses what they answered on the test rows."""
