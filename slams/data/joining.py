"""Matching of the records of stores to states by their validity periods."""

from collections.abc import Mapping

import numpy as np

from slams.core.errors import InvalidValueError
from slams.data.files.periods import Rule, match
from slams.data.store.store import FieldStore


def matching_lags(stores: Mapping[str, FieldStore], state: str, rule: Rule) -> tuple[dict[str, int], str]:
    """Days from the date of a state to the label of the record that belongs to it.

    Args:
        stores: Stores by modality.
        state: Modality of the state.
        rule: Matching rule, as in `slams.data.files.periods.match`.

    Returns:
        The lag of each modality, such as -1 for rain that falls on the day before the state at 00 UTC, and the rule in
        a sentence. Without time bounds in every store, records are joined by date.

    Raises:
        ValueError: If no state has a record of every modality, or lags vary.
    """
    unknown = [name for name, store in stores.items() if store.bounds is None]
    if unknown or len(stores) == 1:
        some = 0 < len(unknown) < len(stores)
        why = f" ({', '.join(unknown)} without time bounds)" if some else ""
        return dict.fromkeys(stores, 0), f"joined by date{why}"
    # bounds is None in no store, as tested above
    periods = {name: store.bounds for name, store in stores.items() if store.bounds is not None}
    joined = match(periods, state, rule)
    lags = {}
    for name, store in stores.items():
        apart = np.unique((store.dates[joined.positions[name]] - joined.dates).astype(int))
        if apart.size > 1:
            raise InvalidValueError(
                f"records of {name!r} lie {apart.min()} to {apart.max()} days after the states of {state!r} they belong "
                "to; its time bounds change along the store: process it again, or join by date (data.match=date)."
            )
        lags[name] = int(apart[0])
    shifted = ", ".join(f"{name} of day {lag:+d}" for name, lag in lags.items() if lag)
    return lags, joined.text() + (f" ({shifted})" if shifted else "")
