//! Which models are served: names, versions, and how requests without a version are split between them.
use super::error::ApiError;
use super::state::Served;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// All models, in the order of the command line.
#[derive(Debug, Default)]
pub struct Registry {
    models: RwLock<Vec<Entry>>,
    /// Counts the requests that were split.
    turn: AtomicU64,
}

/// A model by its name.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    aliases: Vec<String>,
    versions: Vec<Version>,
}

#[derive(Clone, Debug)]
struct Version {
    name: Option<String>,
    weight: u32,
    /// `None` while it is being loaded.
    served: Option<Arc<Served>>,
}

/// One version of one model: what is loaded and unloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The model.
    pub name: String,
    /// Its version.
    pub version: Option<String>,
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A version as `/admin/models` shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Which one.
    pub slot: Slot,
    /// Other names of the model.
    pub aliases: Vec<String>,
    /// Its share of the requests that name no version, over the sum of all weights.
    pub weight: u32,
    /// `None` while it is being loaded.
    pub served: Option<Arc<Served>>,
}

impl Registry {
    fn read<T>(&self, act: impl FnOnce(&[Entry]) -> T) -> T {
        act(&self.models.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, act: impl FnOnce(&mut Vec<Entry>) -> T) -> T {
        act(&mut self.models.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reserves a place for what is about to be loaded.
    ///
    /// # Errors
    /// The name is taken.
    pub fn reserve(&self, slot: &Slot, aliases: &[String], weight: u32) -> Result<(), String> {
        if slot.name.is_empty() || slot.name.contains('@') || slot.version.as_deref() == Some("") {
            return Err(format!("{slot} is no name: names are not empty and have no @"));
        }
        self.write(|models| {
            let version = Version { name: slot.version.clone(), weight, served: None };
            for alias in aliases {
                if models.iter().any(|it| it.name != slot.name && it.is_called(alias)) || alias.contains('@') {
                    return Err(format!("{alias} cannot be a name of {}: it is taken, or has an @", slot.name));
                }
            }
            if let Some(entry) = models.iter_mut().find(|entry| entry.name == slot.name) {
                if entry.versions.iter().any(|it| it.name == slot.version) {
                    return Err(format!("{slot} is served already: unload it first, or give another version"));
                }
                if slot.version.is_none() || entry.versions.iter().any(|it| it.name.is_none()) {
                    return Err(format!(
                        "{} is served already: several versions need a version's name each",
                        slot.name
                    ));
                }
                entry.versions.push(version);
                entry.aliases.extend(aliases.iter().cloned());
                return Ok(());
            }
            if models.iter().any(|entry| entry.is_called(&slot.name)) {
                return Err(format!("{} is another model's name already", slot.name));
            }
            let (name, aliases) = (slot.name.clone(), aliases.to_vec());
            models.push(Entry { name, aliases, versions: vec![version] });
            Ok(())
        })
    }

    /// What was reserved is there. False if it was removed in the meantime.
    pub fn ready(&self, slot: &Slot, served: Arc<Served>) -> bool {
        self.write(|models| match find(models, slot) {
            Some(version) => {
                version.served = Some(served);
                true
            }
            None => false,
        })
    }

    /// Takes a version out: no new request finds it.
    pub fn remove(&self, slot: &Slot) -> Option<Option<Arc<Served>>> {
        self.write(|models| {
            let at = models.iter().position(|entry| entry.name == slot.name)?;
            let entry = &mut models[at];
            let version = entry.versions.iter().position(|version| version.name == slot.version)?;
            let removed = entry.versions.remove(version);
            if entry.versions.is_empty() {
                models.remove(at);
            }
            Some(removed.served)
        })
    }

    /// Changes a version's weight; false if there is no such version.
    pub fn set_weight(&self, slot: &Slot, weight: u32) -> bool {
        self.write(|models| find(models, slot).map(|version| version.weight = weight).is_some())
    }

    /// Everything that is served or being loaded.
    pub fn list(&self) -> Vec<Listed> {
        let one = |entry: &Entry, version: &Version| Listed {
            slot: Slot { name: entry.name.clone(), version: version.name.clone() },
            aliases: entry.aliases.clone(),
            weight: version.weight,
            served: version.served.clone(),
        };
        self.read(|models| {
            models.iter().flat_map(|entry| entry.versions.iter().map(move |version| one(entry, version))).collect()
        })
    }

    /// Everything that answers.
    pub fn served(&self) -> Vec<Arc<Served>> {
        self.read(|models| models.iter().flat_map(|it| &it.versions).filter_map(|it| it.served.clone()).collect())
    }

    /// Names that requests may use, with what answers them: names, aliases, and `NAME@VERSION`.
    pub fn names(&self) -> Vec<(String, Arc<Served>)> {
        let mut names = Vec::new();
        self.read(|models| {
            for entry in models {
                let Some(first) = entry.versions.iter().find_map(|version| version.served.clone()) else { continue };
                names.push((entry.name.clone(), first.clone()));
                names.extend(entry.aliases.iter().map(|alias| (alias.clone(), first.clone())));
                for version in &entry.versions {
                    if let (Some(_), Some(served)) = (&version.name, &version.served) {
                        names.push((served.id.clone(), served.clone()));
                    }
                }
            }
        });
        names
    }

    /// What answers a request: for a name, one of its versions by weight; `NAME@VERSION`; or the first model.
    ///
    /// # Errors
    /// There is no such model (404), or it is being loaded (503).
    pub fn pick(&self, name: Option<&str>) -> Result<Arc<Served>, ApiError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.read(|models| {
            let entry = match name {
                None => models.first(),
                Some(name) => models.iter().find(|entry| entry.is_called(name)),
            };
            if let Some(entry) = entry {
                return entry.split(turn).ok_or_else(|| loading(&entry.name));
            }
            let versioned = name.and_then(|name| name.rsplit_once('@')).and_then(|(name, version)| {
                let entry = models.iter().find(|entry| entry.is_called(name))?;
                entry.versions.iter().find(|it| it.name.as_deref() == Some(version))
            });
            match versioned {
                Some(version) => version.served.clone().ok_or_else(|| loading(name.unwrap_or_default())),
                None => Err(unknown(name, models)),
            }
        })
    }
}

impl Entry {
    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// The version whose turn it is, of those that answer. Multiples of the golden ratio fill the unit interval evenly, so
    /// that shares are right after few requests already and no version gets a long run of them.
    fn split(&self, turn: u64) -> Option<Arc<Served>> {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let ready: Vec<_> = self.versions.iter().filter_map(|it| Some((it.weight, it.served.as_ref()?))).collect();
        let total: u64 = ready.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let share = (u128::from(turn.wrapping_mul(GOLDEN)) * u128::from(total)) >> 64;
        let mut end = 0;
        for (weight, served) in &ready {
            end += u128::from(*weight);
            if share < end {
                return Some((*served).clone());
            }
        }
        // All weights are 0: the model's name alone still means something.
        ready.first().map(|(_, served)| (*served).clone())
    }
}

fn find<'a>(models: &'a mut [Entry], slot: &Slot) -> Option<&'a mut Version> {
    let entry = models.iter_mut().find(|entry| entry.name == slot.name)?;
    entry.versions.iter_mut().find(|version| version.name == slot.version)
}

fn loading(name: &str) -> ApiError {
    ApiError::unavailable(format!("{name} is being loaded"), "loading", 2)
}

fn unknown(name: Option<&str>, models: &[Entry]) -> ApiError {
    let known: Vec<_> = models.iter().map(|entry| entry.name.as_str()).collect();
    ApiError::model_not_found(match (name, known.is_empty()) {
        (_, true) => "no model is loaded".into(),
        (Some(name), _) => format!("there is no model {name:?} here; there are {}", known.join(", ")),
        (None, _) => format!("the request must name a model; there are {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn slot(name: &str, version: Option<&str>) -> Slot {
        Slot { name: name.into(), version: version.map(Into::into) }
    }

    fn serve(registry: &Registry, slot: &Slot, llm: &engine::AsyncLlm) {
        assert!(registry.ready(slot, Arc::new(Served { id: slot.to_string(), llm: llm.clone(), created: 0 })));
    }

    #[test]
    fn requests_are_split_by_weight() {
        let (registry, llm) = (Registry::default(), engine::AsyncLlm::load("tiny-chat").unwrap());
        for (version, weight) in [("a", 90), ("b", 10), ("c", 0)] {
            let slot = slot("m", Some(version));
            registry.reserve(&slot, &[], weight).unwrap();
            serve(&registry, &slot, &llm);
        }
        let mut counts: HashMap<String, u32> = HashMap::new();
        for _ in 0..1000 {
            *counts.entry(registry.pick(Some("m")).unwrap().id.clone()).or_default() += 1;
        }
        assert!(counts["m@a"].abs_diff(900) <= 5 && counts["m@b"].abs_diff(100) <= 5, "{counts:?}");
        assert!(!counts.contains_key("m@c"));
        assert_eq!(registry.pick(Some("m@c")).unwrap().id, "m@c", "a version can be asked for whatever its weight");
        assert!(registry.set_weight(&slot("m", Some("a")), 0) && registry.set_weight(&slot("m", Some("b")), 0));
        assert!(registry.pick(None).is_ok(), "without weights the first one answers");
    }

    #[test]
    fn names_are_unique_and_lead_to_their_models() {
        let (registry, llm) = (Registry::default(), engine::AsyncLlm::load("tiny-chat").unwrap());
        let (first, second) = (slot("first", None), slot("second", Some("1")));
        registry.reserve(&first, &["gpt-4o".into()], 1).unwrap();
        let status = |name| registry.pick(name).map(|it| it.id.clone()).map_err(|error| error.into_body().error.code);
        assert_eq!(status(Some("first")), Err(Some("loading")));
        serve(&registry, &first, &llm);
        registry.reserve(&second, &[], 1).unwrap();
        serve(&registry, &second, &llm);
        assert_eq!(status(None), Ok("first".into()));
        assert_eq!(status(Some("gpt-4o")), Ok("first".into()));
        assert_eq!(status(Some("second")), Ok("second@1".into()));
        assert_eq!(status(Some("third")), Err(Some("model_not_found")));
        assert_eq!(status(Some("second@2")), Err(Some("model_not_found")));
        for wrong in [slot("first", None), slot("first", Some("2")), slot("second", Some("1")), slot("gpt-4o", None)] {
            assert!(registry.reserve(&wrong, &[], 1).is_err(), "{wrong}");
        }
        assert!(registry.reserve(&slot("a@b", None), &[], 1).is_err());
        assert!(registry.reserve(&slot("third", None), &["first".into()], 1).is_err());
        assert!(registry.remove(&first).is_some());
        assert_eq!(status(Some("gpt-4o")), Err(Some("model_not_found")));
    }
}
