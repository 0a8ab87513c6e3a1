//! Who has to do with an address, found by the address: so that a Service is compared with those that share one with it, and
//! not with all that there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cluster_api::Name;

use crate::service::{Place, Reserved};

/// Services by the places that they name.
#[derive(Debug, Default)]
pub struct ByPlace(HashMap<Place, BTreeSet<Name>>);

impl ByPlace {
    /// A Service names other places than before.
    pub fn replace<'a>(
        &mut self,
        name: &Name,
        before: impl IntoIterator<Item = &'a Place>,
        after: impl IntoIterator<Item = &'a Place>,
    ) {
        for place in before {
            if let Some(names) = self.0.get_mut(place) {
                names.remove(name);
                if names.is_empty() {
                    self.0.remove(place);
                }
            }
        }
        for place in after {
            self.0.entry(*place).or_default().insert(name.clone());
        }
    }

    /// Who names any of these places.
    pub fn at<'a>(&self, places: impl IntoIterator<Item = &'a Place>) -> BTreeSet<&Name> {
        places.into_iter().filter_map(|place| self.0.get(place)).flatten().collect()
    }
}

/// What Services leave to the host path, and nobody else gets by naming it as an external address.
#[derive(Debug, Default)]
pub struct Reservations {
    services: BTreeMap<Name, Reserved>,
    places: ByPlace,
}

impl Reservations {
    /// A Service leaves this now. Returns all of it and of what it left before, if that is not the same.
    pub fn replace(&mut self, name: &Name, reserved: Reserved) -> Vec<Place> {
        let before = self.services.remove(name).unwrap_or_default();
        let is_same = before == reserved;
        if !is_same {
            self.places.replace(name, before.places(), reserved.places());
        }
        let concerned = before.places().chain(reserved.places()).filter(|_| !is_same).copied().collect();
        if reserved.places().next().is_some() {
            self.services.insert(name.clone(), reserved);
        }
        concerned
    }

    /// Who else than `name` leaves any of these places, and what.
    pub fn of_others<'a>(&'a self, name: &Name, places: &[Place]) -> impl Iterator<Item = (&'a Name, &'a Reserved)> {
        let owners = self.places.at(places).into_iter().filter(move |owner| *owner != name);
        owners.filter_map(|owner| self.services.get_key_value(owner))
    }
}

#[cfg(test)]
mod tests {
    use service_table::Protocol;

    use super::*;

    fn name(name: &str) -> Name {
        Name { namespace: "default".into(), name: name.into() }
    }

    fn place(last: u8, port: u16) -> Place {
        ([192, 0, 2, last].into(), port, Protocol::Tcp)
    }

    #[test]
    fn who_shares_no_place_is_not_asked_and_who_has_left_leaves_nothing() {
        let mut by_place = ByPlace::default();
        by_place.replace(&name("a"), &[], &[place(1, 80), place(2, 80)]);
        by_place.replace(&name("b"), &[], &[place(1, 80), place(1, 443)]);
        assert_eq!(by_place.at(&[place(1, 80), place(1, 443)]), BTreeSet::from([&name("a"), &name("b")]));
        assert_eq!(by_place.at(&[place(2, 80)]), BTreeSet::from([&name("a")]));
        assert!(by_place.at(&[place(2, 443), place(3, 80)]).is_empty());
        by_place.replace(&name("a"), &[place(1, 80), place(2, 80)], &[place(2, 443)]);
        by_place.replace(&name("b"), &[place(1, 80), place(1, 443)], &[]);
        assert_eq!(by_place.0.keys().collect::<Vec<_>>(), [&place(2, 443)]);
    }

    #[test]
    fn a_service_that_leaves_nothing_concerns_nobody_whenever_it_was_created() {
        let mut reservations = Reservations::default();
        let reserved =
            |places: &[Place]| Reserved { external: places.to_vec(), created: Some(1), ..Reserved::default() };
        assert_eq!(reservations.replace(&name("a"), reserved(&[])), []);
        assert_eq!(reservations.replace(&name("a"), reserved(&[place(1, 80)])), [place(1, 80)]);
        assert_eq!(reservations.replace(&name("a"), reserved(&[place(1, 80)])), []);
        let others = |of: &str, reservations: &Reservations| {
            reservations
                .of_others(&name(of), &[place(1, 80), place(2, 80)])
                .map(|(owner, _)| owner.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(others("b", &reservations), [name("a")]);
        assert_eq!(others("a", &reservations), []);
        assert_eq!(reservations.replace(&name("a"), Reserved::default()), [place(1, 80)]);
        assert!(reservations.services.is_empty() && reservations.places.0.is_empty());
    }
}
