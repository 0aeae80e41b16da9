"""The mathematics the other packages share; imports nothing of ours."""
