"""A page on this machine: compare two images, identify one, find its neighbours."""

import html
import os
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image

from configs import Config
from evaluation.similarity_map import overlay, similarity_map
from inference.answers import text
from inference.similarity_model import SimilarityModel
from pipeline.reading import decode
from run_directory import require_package

LARGEST_UPLOAD, MOST_WAITING = "50mb", 20  # a file; questions in the queue, others are refused
MAPS = (
    "Where the similarity comes from: each square is covered in turn; the redder, the more the "
    "distance grows"
)
THUMBNAIL, LOOK = Config(image_size=160), 320  # pixels, and of the height


def serve(options):
    """Serves the page until Ctrl-C, with the options of `predict.py serve`: the exit status."""
    require_package("gradio", "serve")
    with tempfile.TemporaryDirectory() as uploads:
        # Read by Gradio as it is imported: nothing goes out, and nothing dropped here is kept.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        os.environ["HF_HUB_OFFLINE"] = "1"
        page = build_page(SimilarityModel(options.run), options)
        print(f"http://127.0.0.1:{options.port} until Ctrl-C", flush=True)
        local = {"server_name": "127.0.0.1", "server_port": options.port, "share": False}
        page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)  # one question at a time
        plain = {"ssr_mode": False, "footer_links": [], "show_error": True, "quiet": True}
        page.launch(**local, **plain, max_file_size=LARGEST_UPLOAD)
    return 0


def build_page(model, options):
    """The page, a `gradio.Blocks`, for a `SimilarityModel` and the options of `serve`."""
    import gradio as gr

    def tab(title, button, labels, function, *outputs):
        with gr.Tab(title):
            with gr.Row():
                images = [dropped(label) for label in labels]
            clicked = gr.Button(button, variant="primary")
            clicked.click(guarded(function), images, [make() for make in outputs])

    words = partial(gr.Textbox, label="Answer")
    pictures = partial(gr.Gallery, object_fit="contain", buttons=["fullscreen"])
    with gr.Blocks(title=model.run.path.name, analytics_enabled=False) as page:
        maps, sides = partial(pictures, columns=2, label=MAPS), ("first", "second")
        tab("Compare two images", "Compare", sides, partial(compare, model), words, maps)
        if options.references:
            tab("Identify", "Identify", ["image"], partial(identify, model, options), words)
        if options.gallery:
            found = partial(pictures, columns=5, label="Most similar")
            tab("Find similar", "Find", ["image"], partial(neighbours, model, options), found)
    return page


def dropped(label):
    """A place for an image file."""
    import gradio as gr

    class Dropped(gr.Image):
        """Gives the path alone: where Gradio reads a file itself, its error says no reason."""

        is_template = True  # the browser's side is gr.Image's

        def preprocess(self, payload):
            return payload and payload.path

    return Dropped(label=label, type="filepath", sources=["upload"], height=240)


def guarded(function):
    """A function of paths; what goes wrong becomes a sentence on the page, not a traceback."""
    import gradio as gr

    def call(*paths):
        if not all(paths):
            raise gr.Error("Drop an image first.", print_exception=False)
        try:
            return function(*paths)
        except Exception as error:  # BadImage, DataError, RunError; of Keras and Gradio anything
            said = str(error) or repr(error)
            for path in paths:  # the folder that Gradio keeps them in says nothing to anyone
                said = said.replace(path, Path(path).name)
            # It is shown as HTML.
            raise gr.Error(html.escape(said), print_exception=False) from error

    return call


def compare(model, *paths):
    """The verdict on two images as text, and pictures of where the network looked in each."""
    [answer], looks = model.compare(paths), []
    for path, other in zip(paths, model.embed(paths)[::-1], strict=True):
        pixels = model.pixels(path)
        look = overlay(pixels, similarity_map(model.encoder, pixels, other, model.metric))
        size = round(LOOK * pixels.shape[1] / pixels.shape[0]), LOOK
        looks.append(Image.fromarray(look).resize(size, Image.Resampling.BICUBIC))
    names = dict(zip("ab", (Path(path).name for path in paths), strict=True))
    return text(answer | names), looks


def identify(model, options, path):
    """The class of an image and its candidates, as text."""
    [answer] = model.identify([path], options.references, options.false_accept_rate)
    return text(answer | {"query": Path(path).name})


def neighbours(model, options, path):
    """The most similar images of a gallery, as `(pixels, caption)`."""
    [answer], found = model.search([path], options.gallery), []
    for one in answer["results"]:
        pixels, _ = decode(Path(one["path"]).read_bytes(), THUMBNAIL)
        found.append((pixels, f"{one['distance']:.3f}  {Path(one['path']).name}"))
    return found
