"""What may be stated of other people's demonstrations where they do not show it (`data/conventions.py` reads the rest)."""

from __future__ import annotations

from .errors import LarError, unknown

CONVENTIONS = {  # and what each may be; data/conventions.py says what the values mean
    "state": ("pos_axisangle_fingers", "fingers_pos_axisangle", "pos_euler_fingers", "pos_quaternion_fingers",
              "fingers_pos_quaternion", "pos_quaternion_finger"),
    "alignment": ("before", "after"),
    "pictures": ("upright", "rotated", "flipped", "mirrored"),
    "gripper": ("-1/1", "1/-1", "0/1", "1/0"),
    "actions": ("units", "metres"),
}


def stated_conventions(text: str) -> dict[str, str]:
    """What demos_conventions states: "alignment=before,gripper=1/0" -> {"alignment": "before", "gripper": "1/0"}.

    Raises LarError for a convention or a value that there is not, with the nearest one.
    """
    stated = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise LarError(f"demos_conventions takes NAME=VALUE, separated by commas, not {part!r}: for example "
                           "alignment=before,gripper=1/0.")
        if name not in CONVENTIONS:
            raise unknown("convention of demonstrations", name, CONVENTIONS)
        if value not in CONVENTIONS[name]:
            raise unknown(f"value of the convention {name}", value, CONVENTIONS[name])
        stated[name] = value
    return stated
