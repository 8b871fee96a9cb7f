"""What `SimilarityModel` answers in words: for a terminal, a figure and the page."""


def table(answer):
    """An answer as rows of `(path or class, what is said of it)`, the query first."""
    if "same" in answer:
        said = (
            f"{'same' if answer['same'] else 'different'}  distance {answer['distance']:.3f}, "
            f"threshold {answer['threshold']:.3f}, probability of same {answer['probability']:.1%}"
        )
        return [(answer["a"], said), (answer["b"], "")]
    if "accepted" in answer:
        said = (
            f"{'accepted' if answer['accepted'] else 'rejected'}  {answer['rule']} distance "
            f"{answer['distance']:.3f}, threshold {answer['threshold']:.3f} (false-accept rate of "
            f"{answer['impostors']} {answer['false_accept_rate']:.3g}, {answer['references']} "
            "references)"
        )
        return [(answer["query"], said)]
    if "results" in answer:
        said, name, nearest = "query", "path", answer["results"]
    else:
        said = f"{answer['class'] or 'none of these'} (believed below {answer['threshold']:.3f})"
        name, nearest = "class", answer["candidates"]
    others = [(other[name], f"distance {other['distance']:.3f}") for other in nearest]
    return [(answer["query"], said), *others]


def text(answer):
    """An answer as lines for a reader."""
    (query, said), *others = table(answer)
    lines = [f"\n  {words}  {name}" if words else f"  {name}" for name, words in others]
    return "".join([f"{said}: {query}", *lines])
