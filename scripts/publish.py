"""
Check a model's folder or a simulated corpus, and make a repository of the Hugging Face Hub the same as it.

    python scripts/publish.py model_cards/hsst-enmap --stage outputs/staged
    python scripts/publish.py model_cards/hsst-enmap --hub_model_id hsg-aiml/hsst-enmap --dry_run
    python scripts/publish.py corpus --hub_model_id hsg-aiml/simulated-enmap --repo_type dataset

Files of the repository that the folder does not have are deleted. The same command repeats an interrupted
upload.
"""

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from hsst.support.command_line import one_line_errors
from hsst.support.publication import (
    REPOSITORY_TYPES,
    check_dataset_folder,
    check_model_folder,
    check_owner,
    clear_hub_errors,
    folder_files,
    planned_changes,
    publish,
    stage_model_folder,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that becomes the repository")
    parser.add_argument("--hub_model_id", help="OWNER/NAME of the repository")
    parser.add_argument("--stage", type=Path, metavar="DIR", help="check, write a model's repository to DIR, and end")
    parser.add_argument("--repo_type", choices=REPOSITORY_TYPES, default="model")
    parser.add_argument("--private", action="store_true", help="whether a new repository is private")
    parser.add_argument("--dry_run", action="store_true", help="check, list what would change, and change nothing")
    arguments = parser.parse_args()
    if (arguments.hub_model_id is None) == (arguments.stage is None):
        parser.error("expected one of --hub_model_id and --stage")
    if arguments.stage is not None and arguments.repo_type != "model":
        parser.error("--stage: expected a model, got --repo_type dataset, which is published as it is")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("publish.py"), tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder
        if arguments.repo_type == "model":
            folder = Path(temporary) / "staged"
            try:
                check_model_folder(stage_model_folder(arguments.folder, folder))
            except ValueError as error:
                raise ValueError(str(error).replace(str(folder), str(arguments.folder))) from None
        else:
            check_dataset_folder(folder)
        if arguments.stage is not None:
            stage_model_folder(arguments.folder, arguments.stage)
            print(f"Staged: {arguments.stage}")
            return
        upload(arguments, folder)


def upload(arguments: argparse.Namespace, folder: Path) -> None:
    """Makes the repository the same as a folder that is ready."""
    repository, repo_type = arguments.hub_model_id, arguments.repo_type
    files = folder_files(folder)
    api = HfApi()
    with clear_hub_errors(repository, api.endpoint):
        # What would change in a public repository can be seen without a token
        if not arguments.dry_run:
            check_owner(api, repository)
        changes, exists = planned_changes(api, repository, files, repo_type)
    for change in changes:
        details = "" if change.file is None else f"  {change.file.size:>13,} bytes  sha256 {change.file.sha256}"
        print(f"{change.kind:<6}  {change.name}{details}")
    counts = {kind: sum(change.kind == kind for change in changes) for kind in ("add", "change", "delete", "keep")}
    state = "" if exists else " (new)"
    print(f"{repository}{state}: " + ", ".join(f"{count} to {kind}" for kind, count in counts.items()))
    if arguments.dry_run:
        print("Nothing was changed (--dry_run).")
        return
    with clear_hub_errors(repository, api.endpoint):
        commits = publish(api, repository, changes, repo_type, arguments.private)
    print(f"Published: {api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repository}")
    if not commits:
        print("It was up to date.")


if __name__ == "__main__":
    main()
