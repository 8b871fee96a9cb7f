"""A page on this machine: compare two images, identify one, find its neighbours.

Started by `python predict.py serve RUN [--references DIR] [--gallery DIR]`.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

import plots
from image_cache import decode
from run_directory import need
from similarity import SimilarityModel

THUMBNAIL = 160  # pixels


def serve(options):
    """Serves the page until Ctrl-C; returns the exit status.

    Args:
        options: `run`, `references`, `gallery`, `false_accept_rate`, `port`.
    """
    need("gradio", "serve")
    with tempfile.TemporaryDirectory() as uploads:
        # Read by Gradio as it is imported: nothing goes out, and nothing dropped here is kept.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=uploads)
        os.environ["HF_HUB_OFFLINE"] = "1"
        model = SimilarityModel.load(options.run)
        page = build_page(model, options)
        print(f"http://127.0.0.1:{options.port} until Ctrl-C", flush=True)
        page.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            share=False,
            ssr_mode=False,
            footer_links=[],
            show_error=True,
            quiet=True,
        )
    return 0


def build_page(model, options):
    """The page, a `gradio.Blocks`.

    Args:
        model: A `SimilarityModel`.
        options: `references`, `gallery`, `false_accept_rate`.
    """
    import gradio as gr

    def dropped(label):
        return gr.Image(label=label, type="filepath", image_mode=None, sources=["upload"])

    def guarded(function):
        """A file that cannot be read becomes a message on the page."""

        def call(*paths):
            if not all(paths):
                raise gr.Error("Drop an image first.")
            try:
                return function(*paths)
            except (ValueError, OSError) as error:  # BadImage, DataError, RunError
                raise gr.Error(str(error)) from error

        return call

    with gr.Blocks(title=f"{model.run.path.name}", analytics_enabled=False) as page:
        with gr.Tab("Compare two images"):
            with gr.Row():
                pair = [dropped("first"), dropped("second")]
            button = gr.Button("Compare", variant="primary")
            verdict = gr.Textbox(label="Answer")
            with gr.Row():
                maps = [
                    gr.Image(label=f"{n}: where the network looks") for n in ("first", "second")
                ]
            gr.Markdown("Each square is covered in turn; the redder, the more the distance grows.")
            button.click(guarded(lambda *two: compare(model, *two)), pair, [verdict, *maps])
        if options.references:
            with gr.Tab("Identify"):
                image, button = dropped("image"), gr.Button("Identify", variant="primary")
                text = gr.Textbox(label="Class")
                button.click(guarded(lambda one: identify(model, one, options)), image, text)
        if options.gallery:
            with gr.Tab("Find similar"):
                image, button = dropped("image"), gr.Button("Find", variant="primary")
                found = gr.Gallery(label="Most similar", columns=5, object_fit="contain")
                button.click(guarded(lambda one: neighbours(model, one, options)), image, found)
    return page


def compare(model, first, second):
    """The verdict as text, and where the network looked in each image.

    Args:
        model: A `SimilarityModel`.
        first: Path of an image.
        second: Path of another.
    """
    from report import occlusion_map

    pixels = [model.pixels(path) for path in (first, second)]
    embeddings = model.embed(pixels)
    distance = float(np.linalg.norm(embeddings[0] - embeddings[1]))
    verdict = "Same" if distance < model.threshold else "Different"
    text = (
        f"{verdict}: distance {distance:.3f} (same below {model.threshold:.3f}), "
        f"probability of same {model.probability_at(distance):.1%}"
    )
    heats = [occlusion_map(model.encoder, pixels[n], embeddings[1 - n]) for n in (0, 1)]
    return text, *(plots.overlay(p, heat) for p, heat in zip(pixels, heats, strict=True))


def identify(model, image, options):
    """The class of an image and its candidates, as text."""
    answer = model.identify([image], options.references, options.false_accept_rate)[0]
    lines = [answer["class"] or "none of these", ""]
    for one in answer["candidates"]:
        lines.append(f"{one['class']}: probability {one['probability']:.1%}, "
                     f"distance {one['distance']:.3f}")  # fmt: skip
    return "\n".join(lines)


def neighbours(model, image, options):
    """The most similar images of the gallery, as `(pixels, caption)`."""
    found = []
    for one in model.search([image], options.gallery)[0]["results"]:
        pixels = decode(Path(one["path"]).read_bytes(), THUMBNAIL, 3)[0]
        found.append((pixels, f"{one['distance']:.3f}  {Path(one['path']).name}"))
    return found
