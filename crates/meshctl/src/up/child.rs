//! The programs that `up` starts: this same program with hidden commands.

use std::ffi::OsString;
use std::io::Read;
use std::process::ExitCode;

/// Set by `up` for its children, which then end when it does, even if it is killed.
pub(crate) const ENDS_WITH_PARENT: &str = "MESHCTL_ENDS_WITH_PARENT";

/// Runs mosn with these arguments.
pub(crate) fn mosn(arguments: Vec<OsString>) -> ExitCode {
    end_with_parent();
    mosn::server::main(program("mosn", arguments))
}

/// Runs pilot with these arguments.
pub(crate) fn pilot(arguments: Vec<OsString>) -> ExitCode {
    end_with_parent();
    pilot::main(program("pilot", arguments))
}

fn program(name: &str, arguments: Vec<OsString>) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from(name)).chain(arguments)
}

/// Ends this process when its standard input does: `up` holds the other end, and the kernel closes it whatever way
/// `up` comes to its end. Without this, a killed `up` would leave a mesh behind that nobody sees.
pub(crate) fn end_with_parent() {
    if std::env::var_os(ENDS_WITH_PARENT).is_none() {
        return;
    }
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
        std::process::exit(0);
    });
}
