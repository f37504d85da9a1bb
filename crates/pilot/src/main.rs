//! The program `pilot`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pilot::main(std::env::args_os())
}
