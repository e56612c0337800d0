# Sourced by scripts/demo and scripts/test: makes .venv beside the repository's files and installs
# the package into it, editable. Later runs find their stamp, and that Python would import this
# folder's files and no copy of them, and start at once.
# Usage: source scripts/environment.sh; prepare_environment NAME EXTRAS

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && "$candidate" -c '
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11 to 3.13 was found (python3 is $(python3 --version 2>&1)). Install one," \
        "or name it: PYTHON=/path/to/python3.12 $0" >&2
    return 1
}

# False for a copy, which a plain `pip install .` in .venv leaves, and for another clone's files.
imports_this_folder() {
    .venv/bin/python -I -c '
import importlib.util, os, sys
spec = importlib.util.find_spec("qwen35")
sys.exit(not os.path.samefile(spec.origin, "qwen35/__init__.py"))' 2>/dev/null
}

prepare_environment() {
    local stamp=".venv/.installed-$1" python wanted
    wanted=$(cat pyproject.toml scripts/environment.sh | cksum)
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        if imports_this_folder; then
            return
        fi
        echo "The qwen35 installed in .venv is a copy, or another folder's: what is changed here" >&2
        echo "would not run. Installing this folder's in its place ..." >&2
    fi
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        echo "Making .venv with $("$python" --version) ..." >&2
        "$python" -m venv .venv
    fi
    local shown=--progress-bar=on
    if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
        echo "Installing torch, torch-xla and transformers. PyPI's Linux wheel of torch brings" >&2
        echo "about 3 GB of CUDA libraries, which nothing here uses: this takes minutes. The" >&2
        echo "README names a lighter way. pip's own settings (PIP_INDEX_URL, pip.conf) hold." >&2
    else
        echo "Updating the packages in .venv ..." >&2
        shown=--quiet
    fi
    # Gigabytes over a slow line: a connection that breaks is no reason to give up.
    local attempt
    for attempt in 1 2 3; do
        .venv/bin/python -m pip install "$shown" --disable-pip-version-check \
            --editable ".$2" >&2 && break
        if [ "$attempt" = 3 ]; then
            echo "Installing failed three times; pip's messages are above." >&2
            return 1
        fi
        echo "Installing failed; trying again ..." >&2
    done
    echo "$wanted" >"$stamp"
}

# Prints a folder for PYTHONPATH with the oldest transformers that pyproject.toml allows, alone:
# Python finds it before the one in .venv, and what it needs in .venv.
oldest_transformers() {
    local version folder
    version=$(sed -n 's/^ *"transformers>=\([0-9.]*\),<.*/\1/p' pyproject.toml)
    folder="$PWD/.venv/transformers-$version"
    if [ ! -d "$folder" ]; then
        echo "Installing transformers $version beside the one in .venv ..." >&2
        rm -rf "$folder.part"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
            --target "$folder.part" "transformers==$version" >&2
        mv "$folder.part" "$folder"
    fi
    echo "$folder"
}

# Prints what stands at the top of the script $1 and ends it, if the arguments after ask for help and
# there is no environment yet that could give more: help is no reason to install one.
help_before_installing() {
    local script="$1"
    shift
    case " $* " in
        *" -h "* | *" --help "*) [ -x .venv/bin/python ] && return ;;
        *) return 0 ;;
    esac
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
    exit 0
}
