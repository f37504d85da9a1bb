//! A moment of the world as connections see it: its resources, class by class, generated when first asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::generate::Generated;
use crate::proxy::{Class, Proxy};
use crate::source::Problem;
use crate::world::World;

type Classes = HashMap<Class, Arc<OnceLock<Arc<Generated>>>>;

/// One moment.
pub struct Snapshot {
    /// What pilot knows.
    pub world: Arc<World>,
    /// Documents that are not in force as written.
    pub problems: Arc<[Problem]>,
    /// When the first of the changes that made it came: convergence is measured from here.
    pub changed_at: Instant,
    classes: Mutex<Classes>,
    /// Resources of the moment before, of which endpoints may be reused.
    previous: HashMap<Class, Arc<Generated>>,
}

impl Snapshot {
    /// The first snapshot.
    pub fn new(world: Arc<World>, problems: Arc<[Problem]>, changed_at: Instant) -> Snapshot {
        Snapshot {
            world,
            problems,
            changed_at,
            classes: Mutex::default(),
            previous: HashMap::new(),
        }
    }

    /// The next one.
    pub fn next(
        &self,
        world: Arc<World>,
        problems: Arc<[Problem]>,
        changed_at: Instant,
    ) -> Snapshot {
        let classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        let generated = classes
            .iter()
            .filter_map(|(class, cell)| Some((class.clone(), cell.get()?.clone())));
        // A class that nobody asked for in between may still be asked for.
        let mut previous = self.previous.clone();
        previous.extend(generated);
        previous.retain(|_, generated| generated.is_of(&world.index));
        Snapshot {
            previous,
            ..Snapshot::new(world, problems, changed_at)
        }
    }

    /// The resources of a proxy's class.
    pub fn generated(&self, proxy: &Proxy) -> Arc<Generated> {
        let class = proxy.class(&self.world.index, &self.world.mesh.root_namespace);
        let cell = self
            .classes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(class.clone())
            .or_default()
            .clone();
        // Others that ask for the same class wait here instead of generating it too.
        let generate = || {
            let previous = self.previous.get(&class);
            Arc::new(match previous {
                Some(previous) => previous.with_endpoints(self.world.clone()),
                None => Generated::new(self.world.clone(), class.clone()),
            })
        };
        cell.get_or_init(generate).clone()
    }

    /// Number of classes that were generated.
    pub fn classes(&self) -> usize {
        self.classes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}
