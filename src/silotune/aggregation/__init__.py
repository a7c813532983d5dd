"""A round's updates to one: sums that are exact in any order of arrival, and the error of averaging."""
