//! Random histories of registries, applications and hubs that crash, lose their connections, their marks and
//! their disks: in each the laws of synchronisation hold at every moment, and in the end all sides agree.
//!
//! `SYNC_SEED=n` replays one history and tells it, `SYNC_HISTORIES=n` runs so many, from `SYNC_FIRST` on. Without them each day of
//! twelve has its thousand of the seeds that are known to hold.

mod hub;
mod registry;
mod world;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use world::World;

/// Between two moments of a history, in which things happen and afterwards.
const TICK: Duration = Duration::from_secs(1);
const LONG_TICK: Duration = Duration::from_secs(3);
/// How long hubs hold back what is suspicious.
const HOLD: Duration = Duration::from_secs(20);
/// What hubs know may be so old.
const NEWS: Duration = Duration::from_secs(10);
/// Moments in which things happen.
const WILD: usize = 80;
/// Moments until all sides agree: registries may show for two minutes what was taken out.
const CALM: usize = 80;
/// Histories of a run.
const HISTORIES: u64 = 1000;
/// Days until the same histories run again.
const DAYS: u64 = 12;
/// Broken histories that are named.
const SHOWN: usize = 20;
/// Moments in which nobody writes any more.
const STILL: usize = 10;

fn history(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    for _ in 0..WILD {
        if world.rng.u8(..3) == 0 {
            world.happen();
        }
        world.tick(TICK);
    }
    world.heal();
    for _ in 0..CALM {
        world.tick(LONG_TICK);
    }
    world.check_end();
    let writes = |world: &World| world.hubs.iter().map(|hub| hub.writes).sum::<u64>();
    let before = writes(&world);
    for _ in 0..STILL {
        world.tick(LONG_TICK);
    }
    if writes(&world) > before && world.broken.is_none() {
        world.broken = Some(format!("{} writes in the end", writes(&world) - before));
    }
    match world.broken {
        None => Ok(()),
        Some(law) => Err(format!("{law}\n{}", world.history.join("\n"))),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Days since 1970.
fn day() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / (24 * 60 * 60))
}

#[test]
fn the_laws_hold_in_every_history() {
    if let Some(seed) = number("SYNC_SEED") {
        let result = history(seed);
        assert!(result.is_ok(), "{}", result.unwrap_err());
        return;
    }
    let histories = number("SYNC_HISTORIES").unwrap_or(HISTORIES);
    let first = number("SYNC_FIRST").unwrap_or_else(|| day() % DAYS * HISTORIES);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let broken: Vec<(u64, String)> = std::thread::scope(|scope| {
        let part = |part: u64| {
            let seeds = (first..first + histories).filter(move |seed| seed % threads == part);
            let broken = seeds.filter_map(|seed| Some((seed, history(seed).err()?)));
            broken.take(SHOWN).collect::<Vec<_>>()
        };
        let parts: Vec<_> = (0..threads)
            .map(|at| scope.spawn(move || part(at)))
            .collect();
        let parts = parts.into_iter();
        parts
            .flat_map(|part| part.join().expect("no panic"))
            .collect()
    });
    let laws = broken.iter().map(|(seed, told)| {
        let law = told.lines().next().unwrap_or_default();
        format!("SYNC_SEED={seed}: {law}")
    });
    let laws: Vec<String> = laws.collect();
    assert!(laws.is_empty(), "{}", laws.join("\n"));
}
