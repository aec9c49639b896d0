"""Texts that depend on nothing but echox itself, so that no part of it has to be imported."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from echox.core.errors import ConfigError
from echox.core.registry import KINDS
from echox_cli.arguments import OPTIONS

INFO = "echox-info"
TOPICS = (*KINDS, "recipe", "asset", "device", "variables")
"""What `echox-info` explains, beside fields of a recipe."""
SHELLS = ("bash", "zsh")

# Bash splits words at "=", so there only what follows the last "=" may be offered; zsh takes
# the complete words. `default` falls back on file names where nothing is offered; `nospace`,
# because a field goes on after its dot or equals sign.
_SCRIPT = """\
_{function}() {{
    local line word
    line="${{COMP_LINE:0:$COMP_POINT}}"
    word="${{line##* }}"
    local IFS=$'\\n'
    COMPREPLY=($({program} --complete "$line" 2>/dev/null))
    if [ -n "$BASH_VERSION" ]; then
        case "$word" in *=*) COMPREPLY=("${{COMPREPLY[@]#${{word%%=*}}=}}");; esac
    fi
}}
complete -o default -o nospace -F _{function} {program}"""

# In zsh, `complete` comes from bashcompinit, and that needs compinit, which a bare shell has
# not loaded.
_ZSH = """\
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""


def script(program: str, shell: str) -> str:
    """Return the completion script of a command, for `eval "$(echox-train --completion bash)"`.

    Args:
        program: the command's name.
        shell: one of `SHELLS`.

    Raises:
        ConfigError: the shell is unknown.
    """
    if shell not in SHELLS:
        raise ConfigError(f"no completion for {shell!r}; use --completion {' or '.join(SHELLS)}")
    # POSIX allows no dash in the name of a function.
    body = _SCRIPT.format(function=program.replace("-", "_"), program=program)
    return body if shell == "bash" else _ZSH + body


def version(program: str) -> str:
    """Return a command's name and the version of echox."""
    return f"{program} {importlib.metadata.version('echox')}"


def info_help() -> str:
    """Return the help of `echox-info`."""
    return f"""\
Show versions, devices, and everything that is registered.

usage: {INFO} [KIND [NAME]]
       {INFO} FIELD [recipe=NAME]

kinds: {", ".join(TOPICS)}

  {INFO} encoder           lists the encoders
  {INFO} encoder whisper   explains one
  {INFO} recipe echo_mini  shows a recipe in full
  {INFO} device            measures how fast this processor multiplies in each number format
  {INFO} variables         explains environment variables, and shows those that are set
  {INFO} s2t.train         explains fields of a stage or a part, as the default recipe has them

  {"--version":<14} {OPTIONS["--version"]}
  {"--completion":<14} {OPTIONS["--completion"]}"""


def fixed_answer(program: str, argv: Sequence[str]) -> str | None:
    """Return the answer to a command line that asks for one of these texts, or None.

    Args:
        program: the command's name.
        argv: the words after it.

    Raises:
        ConfigError: there is no completion for the shell.
    """
    match list(argv):
        case ["--version"]:
            return version(program)
        case ["--completion", shell]:
            return script(program, shell)
        # The help of other commands lists fields of configs, which have to be imported.
        case ["--help" | "-h"] if program == INFO:
            return info_help()
    return None
