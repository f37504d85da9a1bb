//! Every registry's stock client sees, through synchronisation, what the stock clients of all others registered; it stays so
//! whatever happens, and what is seen is called through two sidecars.

mod clients;
mod consul;
mod crashes;
mod disturb;
mod etcd;
mod kubernetes;
mod pairs;
mod side;
mod state;
mod steps;
mod world;

use side::Kind;

/// The registries that are installed in a minute.
fn four() -> &'static [Kind] {
    &Kind::ALL[..4]
}
