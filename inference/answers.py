"""What `SimilarityModel` answers in words: for a terminal and the page."""

COMPARED = (
    "{verdict}  distance {distance:.3f}, threshold {threshold:.3f}, "
    "probability of same {probability:.1%}: {a}  {b}"
)
VERIFIED = (
    "{verdict}  {rule} distance {distance:.3f}, threshold {threshold:.3f} (false-accept rate of "
    "{impostors} {false_accept_rate:.3g}, {references} references): {query}"
)


def text(answer):
    """An answer as lines for a reader."""
    if "same" in answer:
        return COMPARED.format(verdict="same" if answer["same"] else "different", **answer)
    if "accepted" in answer:
        return VERIFIED.format(verdict="accepted" if answer["accepted"] else "rejected", **answer)
    if "results" in answer:
        said, found, name = "query", answer["results"], "path"
    else:
        said = f"{answer['class'] or 'none of these'} (believed below {answer['threshold']:.3f})"
        found, name = answer["candidates"], "class"
    lines = [f"  distance {one['distance']:.3f}  {one[name]}" for one in found]
    return "\n".join([f"{said}: {answer['query']}", *lines])
