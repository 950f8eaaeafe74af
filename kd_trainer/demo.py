"""
A page to try a student in a browser: the labels of a text beside its teacher's, what mattered most, files of texts.

    python -m kd_trainer.demo outputs/demo/distilled --teacher outputs/demo/teacher
    python -m kd_trainer.demo you/student --space outputs/space

It listens on this machine alone unless --host says otherwise, and loads safetensors weights only.
"""

import importlib.util
import itertools
import logging
import os
import signal
import tempfile
from pathlib import Path

from .arguments import ModelArguments, check_sizes
from .console import CommandParser, log_to_terminal, run_console
from .demo_models import MOST_CHARACTERS, load_demo
from .errors import InputError
from .loading import check_folder
from .pairs import sides
from .space import write_space
from .teacher import parse_label_map
from .text_stream import iterate_texts

logger = logging.getLogger("kd_trainer.demo")  # its name with python -m, too

MOST_EXAMPLES = 8


def make_parser():
    """The command line of this module."""
    parser = CommandParser("demo", __doc__)
    parser.add_argument("student", help="Folder of a saved classifier, or its name on the hub.")
    parser.add_argument("--teacher", help="Folder or name of the classifier that is shown beside it.")
    parser.add_argument("--label_map", help="The teacher's labels in the student's words: old=new,old=new.")
    parser.add_argument("--examples", help=f"File with texts to pick, the first {MOST_EXAMPLES} of which are shown.")
    parser.add_argument("--text_column", help="Column of the texts in a csv; the usual names are found without.")
    parser.add_argument("--text_pair_column", help="Column of the second texts in a csv of pairs (text_pair).")
    parser.add_argument("--text_pairs", action="store_true", help="The models read two texts and do not say so.")
    parser.add_argument(
        "--max_seq_length",
        type=int,
        help="Longest text, in tokens (that of its recipe.yaml, else 128).",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the code that comes with a model.")
    parser.add_argument("--cache_dir", help="Where models from the hub are stored.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (127.0.0.1, this machine alone).")
    parser.add_argument("--port", type=int, default=7860, help="Port to listen on (7860).")
    parser.add_argument("--share", action="store_true", help="Ask gradio's servers for a public link.")
    parser.add_argument("--space", help="Write a Space of the hub with this page into a new folder, and end.")
    return parser


def read_examples(path, text_column, text_pair_column):
    """
    The first texts of a file, `list[str]` or pairs.

    Raises:
        `InputError`: As `text_stream.iterate_texts`, and for texts that the page would refuse.
    """
    texts = iterate_texts(path, text_column, text_pair_column)
    examples = list(itertools.islice((text for text in texts if all(map(str.strip, sides(text)))), MOST_EXAMPLES))
    if not examples:
        raise InputError(f"--examples {path}: no text in the file: give one with a text on each line")
    if any(len(side) > MOST_CHARACTERS for text in examples for side in sides(text)):
        raise InputError(f"--examples {path}: a text of more than {MOST_CHARACTERS} characters: give shorter ones")
    return examples


def name_of(source):
    """What the page calls a model: the last two parts of its folder, or its name on the hub."""
    return "/".join(Path(source).resolve().parts[-2:]) if Path(source).exists() else str(source)


def main(argv):
    """Shows the page, or writes the Space, as the command line `argv` (`list[str]`) says."""
    log_to_terminal()
    args = make_parser().parse_args(argv)
    check_sizes(args, "max_seq_length")
    check_sizes(args, "port", least=0, most=65535)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio: pip install 'kd_trainer[demo]'")
    label_map = parse_label_map(args.label_map)
    if label_map and args.teacher is None:
        raise InputError("--label_map translates a teacher's labels: give --teacher, or leave it out")
    if args.space is not None:
        write_space(args)
        logger.info(f"Space written to {args.space}: push that folder to a Space of the hub")
        return
    check_folder(args.student, "student")
    if args.teacher is not None:
        check_folder(args.teacher, "teacher")
    loading = ModelArguments(cache_dir=args.cache_dir, trust_remote_code=args.trust_remote_code)
    columns = (args.text_column, args.text_pair_column)
    demo = load_demo(args.student, args.teacher, loading, label_map, args.max_seq_length, args.text_pairs, columns)
    if args.text_pair_column is not None and not demo.reads_pairs:
        raise InputError(f"--text_pair_column: {args.student} reads single texts: leave it out")
    examples = [] if args.examples is None else read_examples(args.examples, args.text_column, demo.text_pair_column)
    # What gradio asks of the network, and where it leaves what visitors send, is read from here when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="kd_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from .demo_page import Page, serve

        names = (name_of(args.student), None if args.teacher is None else name_of(args.teacher))
        page = Page(demo, names, examples)
        try:
            # The page of a Space is shown inside another one, which has scripts of its own.
            blocks, address = serve(page, args.host, args.port, args.share, guarded="SPACE_ID" not in os.environ)
        except OSError:
            raise InputError(f"--host {args.host} --port {args.port}: cannot listen there: give another") from None
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            logger.warning(f"--host {args.host}: whoever reaches this machine can use the page")
        logger.info(f"the page is at {address} (Ctrl+C ends it)")
        # A polite kill removes what visitors have sent, too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        blocks.block_thread()


def console():
    """Entry point of `kd-demo`."""
    run_console(main)


if __name__ == "__main__":
    console()
