"""Losses over all pairs of a batch: classes and embeddings in, a scalar out.

Those of given pairs, as `contrastive_loss`, are in `siamese_network_funcs.py`.

Everywhere `labels` are classes, (batch,) or (batch, 1), and `embeddings` (batch, embedding_dim).
"""

from keras import ops

from networks.embedding import SMALLEST_SQUARED_DISTANCE, unit_length

BEYOND = 1e9  # larger than any distance or similarity: what a mask puts out of reach


def batch_contrastive_loss(labels, embeddings, margin=1.0):
    """The contrastive loss over all pairs of a batch, genuine and impostor weighing the same.

    Impostors are averaged over those inside the margin, as most of a batch's are far apart and
    would water the few hard ones down.
    """
    genuine, impostor = pair_masks(labels, embeddings.dtype)
    distance = pairwise_distances(embeddings)
    gap = ops.maximum(margin - distance, 0.0)
    inside = impostor * ops.cast(gap > 0, gap.dtype)
    return masked_mean(ops.square(distance), genuine) + masked_mean(ops.square(gap), inside)


def supervised_contrastive_loss(labels, embeddings, temperature=0.05):
    """Softmax over each image's similarities: its class against all others of the batch.

    Embeddings are brought to unit length here; a small temperature looks at the hardest pairs.
    Averaged over the images that have a genuine partner in the batch.

    Reference:
        Khosla et al., "Supervised Contrastive Learning", 2020, equation 2.
    """
    genuine, impostor = pair_masks(labels, embeddings.dtype)
    embeddings = unit_length(embeddings)
    similarity = ops.matmul(embeddings, ops.transpose(embeddings)) / temperature
    others = genuine + impostor  # all but the image itself
    similarity = similarity - (1 - others) * BEYOND
    log_share = similarity - ops.logsumexp(similarity, axis=1, keepdims=True)
    partners = ops.sum(genuine, axis=1)  # (batch,)
    per_image = -ops.sum(genuine * log_share, axis=1) / ops.maximum(partners, 1.0)
    return masked_mean(per_image, ops.cast(partners > 0, per_image.dtype))


def batch_triplet_loss(labels, embeddings, margin=1.0, triplet="hardest"):
    """The mean of `max(0, d+ + margin - d-)` over anchors, positives and negatives.

    An anchor stands against its farthest positive and its nearest negative ("hardest"), the two
    nearest negatives ("1+2"), or the two farthest positives ("2+1").

    Reference:
        Hermans, Beyer & Leibe, "In Defense of the Triplet Loss", 2017 (hardest).
    """
    genuine, impostor = pair_masks(labels, embeddings.dtype)
    distance = pairwise_distances(embeddings)
    to_negatives = distance + (1 - impostor) * BEYOND
    num_positives, num_negatives = {"1+2": (1, 2), "2+1": (2, 1)}.get(triplet, (1, 1))
    farthest = ops.top_k(distance * genuine - (1 - genuine) * BEYOND, num_positives)[0]
    nearest = -ops.top_k(-to_negatives, num_negatives)[0]
    hinges = ops.maximum(farthest[:, :, None] + margin - nearest[:, None], 0.0)
    # An anchor with fewer positives or negatives than that goes without the missing ones.
    there = ops.cast((farthest[:, :, None] >= 0) & (nearest[:, None] < BEYOND / 2), distance.dtype)
    return masked_mean(hinges, there)


def relational_distillation(labels, embeddings, teacher):
    """How far similarities within classes have moved from those that another network sees.

    The mean squared difference of the cosines of genuine pairs; `teacher` (batch, d) are the other
    network's embeddings, both of unit length. What varies within known classes tells unseen ones
    apart, and is lost where each class becomes one point.

    Reference:
        After Park, Kim, Lu & Cho, "Relational Knowledge Distillation", 2019, who take all pairs.
    """
    ours, theirs = (ops.matmul(x, ops.transpose(x)) for x in (embeddings, teacher))
    return masked_mean(ops.square(ours - theirs), pair_masks(labels, ours.dtype)[0])


def pair_masks(labels, dtype="float32"):
    """`(genuine, impostor)` pairs, tensors (batch, batch) of 0 and 1; the diagonal is 0 in both."""
    labels = ops.reshape(labels, (-1,))
    equal = ops.cast(labels[:, None] == labels[None], dtype)
    return equal - ops.eye(ops.shape(labels)[0], dtype=dtype), 1 - equal


def masked_mean(values, mask):
    """Mean of the values where a mask of 0 and 1 is 1; 0 where it is nowhere 1."""
    return ops.sum(values * mask) / ops.maximum(ops.sum(mask), 1.0)


def pairwise_distances(embeddings):
    """Euclidean distances (batch, batch) between all rows."""
    squared = ops.sum(ops.square(embeddings), axis=-1)  # (batch,)
    products = ops.matmul(embeddings, ops.transpose(embeddings))
    squared = squared[:, None] + squared[None] - 2 * products
    return ops.sqrt(ops.maximum(squared, SMALLEST_SQUARED_DISTANCE))
