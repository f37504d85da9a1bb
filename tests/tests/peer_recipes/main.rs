//! The migration recipes of the pages on registries that compile for long. Where `make peers` has not built one there is nothing
//! to test with.

mod consul;
#[path = "../recipes/dubbo2.rs"]
mod dubbo2;
mod kubernetes;
mod nacos;

fn is_built(program: &str) -> bool {
    let found = testkit::programs::peer(program).is_some();
    if !found {
        eprintln!("skipped: {program} is not built; make peers builds it");
    }
    found
}
