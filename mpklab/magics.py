"""`%load_ext mpklab` gives `%%mpk_profile`: profile the kernels that a cell runs, and show what they did."""

from __future__ import annotations

from typing import Any

from mpklab.run.profiling import profiling
from mpklab.widgets.studio import Studio


def register(shell: Any) -> None:
    """Give an IPython shell the magics of mpklab."""
    from IPython.core import magic_arguments
    from IPython.core.error import UsageError
    from IPython.display import display

    @magic_arguments.magic_arguments("%%mpk_profile")
    @magic_arguments.argument("name", nargs="?", help="a variable for the recording (a list where several were made)")
    @magic_arguments.argument("-l", "--level", type=int, default=2, choices=(1, 2, 3), help="how much to record")
    @magic_arguments.argument("-q", "--quiet", action="store_true", help="record, and show nothing")
    def mpk_profile(line: str, cell: str) -> None:
        """Run a cell, record every kernel that it runs, and show the last recording in a Studio."""
        asked = magic_arguments.parse_argstring(mpk_profile, line)
        with profiling(asked.level) as recorded:
            ran = shell.run_cell(cell)
        if asked.name:
            shell.user_ns[asked.name] = recorded[0] if len(recorded) == 1 else recorded
        if not asked.quiet:
            if len(recorded) > 1:
                kept = f"; all of them are in {asked.name}" if asked.name else "; %%mpk_profile NAME keeps all of them"
                print(f"{len(recorded)} recordings, of which this is the last{kept}")
            if recorded:
                display(Studio(recorded[-1]))
            elif ran.success:
                print("no kernel ran in this cell, so nothing was recorded")
        if not ran.success:  # its traceback stands above; whoever runs all cells must stop here
            raise UsageError("the profiled cell ended with an error")

    shell.register_magic_function(mpk_profile, "cell", "mpk_profile")
