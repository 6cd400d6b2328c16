//! Shares: how many connections each worker may hold, so that the service never has more than the supervisor can keep in escrow.
//!
//! A worker accepts until it holds its part of `max_connections`. That alone is no bound: other workers adopt what a dead worker had, and its
//! replacement would fill a part of its own, at each death anew. So the supervisor tells each worker how many it may hold. It subtracts what
//! others hold beyond their part and what waits for a worker, and gives that back when those connections have ended. While a worker boots the
//! others have its part, so that they take what comes meanwhile.
//!
//! What a worker accepts before it hears of a lower number counts until the worker has confirmed the number. By then the worker has all its
//! connections in escrow. Until then nobody else gets what was subtracted. A worker that confirms nothing for 100 ms is stopped, and accepts nobody.
//!
//! What a worker releases takes a place until another worker has it. So the worker may hold as many fewer from then on; otherwise it would
//! accept others in those places.
//!
//! A connection gives way to a new one only if the service has no room. A worker at its number can't know that, so the supervisor tells it.
//!
//! A worker asks for escrow of what it has accepted, and connections that have ended count until it has said so. It runs no handler on a connection
//! that might not be kept, and it does not wait for an answer either. So the supervisor grants beforehand how many it may ask for
//! ([`Credit`]), out of what nobody has and nobody else was granted.
//!
//! All numbers are the supervisor's own counts, never a worker's word.

use std::time::{Duration, Instant};

use crate::supervisor::policy::state::WorkerId;
use crate::worker::GIVE_UP_LETTING_GO;

/// How long a worker has for saying that it has heard that it may hold less: whoever replaces another waits for that meanwhile.
pub(crate) const HEARS_WITHIN: Duration = Duration::from_millis(100);

/// What a worker has of the service's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// It accepts no more.
    has_ended: bool,
    /// Its part by how many serve; none before it is ready.
    part: usize,
    /// It accepts until it holds so many.
    may_hold: usize,
    /// The most that it was ever told: what it accepted then may still be about to be kept.
    was_told: usize,
    /// What it was told of less, and has not said that it has heard.
    unheard: Option<Unheard>,
    /// What it held beyond that when it last went on with others' connections, or was told of less, as far as it still does.
    adopted_to: usize,
    /// What it was told to release and has not offered yet.
    leaving: Option<Leaving>,
    /// Whether the service has room, as it was told last. None where that is not known.
    service_has_room: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leaving {
    count: usize,
    /// From then on it offers them no more.
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unheard {
    /// It may hold so many until then.
    before: usize,
    /// How often it was told less.
    times: u32,
    /// From then on it is taken to have heard.
    until: Instant,
}

impl Share {
    /// Of a worker that boots: it hears how many it may hold when it is ready. Before that it could not be told to hold less again.
    pub(crate) fn at_birth() -> Self {
        Self::left(0)
    }

    /// Of a worker that was told so by a program before this one.
    pub(crate) fn left(may_hold: usize) -> Self {
        Self {
            has_ended: false,
            part: 0,
            may_hold,
            was_told: may_hold,
            unheard: None,
            adopted_to: 0,
            leaving: None,
            service_has_room: None,
        }
    }

    /// It accepts no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub(crate) fn may_hold(&self) -> usize {
        self.may_hold
    }

    pub(crate) fn service_has_room(&self) -> bool {
        self.service_has_room.unwrap_or(false)
    }

    /// It is told whether the service has room, if that has changed.
    pub(crate) fn hears_of_room(&mut self, has_room: bool) -> bool {
        !self.has_ended() && self.service_has_room.replace(has_room) != Some(has_room)
    }

    /// The most connections of it that are kept, with some `slack` for those whose end it has not told yet.
    pub(crate) fn may_keep(&self, slack: usize) -> usize {
        self.was_told.max(self.adopted_to).saturating_add(slack)
    }

    /// It has so many that are kept: more than it may hold, where it accepted them before it heard of less.
    pub(crate) fn keeps(&mut self, kept: usize) {
        if kept > self.may_hold {
            self.adopted(kept);
        }
    }

    /// It has so many that are kept, some of them others' until now.
    pub(crate) fn adopted(&mut self, kept: usize) {
        self.adopted_to = self.adopted_to.max(kept);
    }

    /// Some of its connections have ended, or are others' from now on; it has so many left.
    pub(crate) fn gave_up(&mut self, kept: usize) {
        self.adopted_to = self.adopted_to.min(kept);
    }

    /// It is told to release so many. It may hold as many fewer meanwhile, and hears of that first.
    pub(crate) fn releases(&mut self, count: usize, now: Instant) {
        // What it lets go already is part of it.
        self.leaving = Some(Leaving {
            count: count.max(self.leaving()),
            until: now + GIVE_UP_LETTING_GO + HEARS_WITHIN,
        });
    }

    /// So many wait for others now.
    pub(crate) fn offered(&mut self, count: usize) {
        let left =
            self.leaving.map(|leaving| Leaving { count: leaving.count.saturating_sub(count), ..leaving });
        self.leaving = left.filter(|leaving| leaving.count > 0);
    }

    fn leaving(&self) -> usize {
        self.leaving.map_or(0, |leaving| leaving.count)
    }

    /// It may hold no more than that.
    fn most(&self) -> usize {
        self.part.saturating_sub(self.leaving())
    }

    /// Its part is another one, as there are more workers or fewer. True where it may hold less than before, which it must be told at
    /// once. Of what it has, `kept`, nothing is taken from it.
    pub(crate) fn has_part(&mut self, part: usize, kept: usize, now: Instant) -> bool {
        self.unheard = self.unheard.filter(|unheard| now < unheard.until);
        self.leaving = self.leaving.filter(|leaving| now < leaving.until);
        if self.has_ended {
            return false;
        }
        self.part = part;
        if self.may_hold <= self.most() {
            return false;
        }
        let until = now + HEARS_WITHIN;
        let first = Unheard { before: self.may_hold, times: 0, until };
        let unheard = self.unheard.get_or_insert(first);
        (unheard.times, unheard.until) = (unheard.times.saturating_add(1), until);
        self.may_hold = self.most();
        self.keeps(kept);
        true
    }

    /// It has heard that it may hold less, and all that it has is kept by now.
    pub(crate) fn has_heard(&mut self, kept: usize) {
        self.unheard = self.unheard.filter(|unheard| unheard.times > 1);
        if let Some(unheard) = &mut self.unheard {
            unheard.times -= 1;
        }
        self.keeps(kept);
    }

    /// When what it holds may be another amount although it says nothing.
    pub(crate) fn moment(&self) -> Option<Instant> {
        let unheard = self.unheard.map(|unheard| unheard.until);
        unheard.into_iter().chain(self.leaving.map(|leaving| leaving.until)).min()
    }

    /// It was told to end, and accepts no more. It has so many that are kept.
    pub(crate) fn ends(&mut self, kept: usize) {
        self.has_ended = true;
        (self.part, self.may_hold, self.leaving) = (0, 0, None);
        self.adopted(kept);
    }

    /// What it holds, or may come to hold without being told anything.
    fn claim(&self) -> usize {
        let may_hold = self.may_hold + self.leaving();
        may_hold.max(self.adopted_to).max(self.unheard.map_or(0, |unheard| unheard.before))
    }
}

/// How many connections a worker may yet ask to have kept, being sure that they are. None where its program knows nothing of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credit(Option<usize>);

impl Credit {
    pub(crate) fn new(open: Option<usize>) -> Self {
        Self(open)
    }

    /// For the program that goes on in this one's place.
    pub(crate) fn leave(self) -> Option<usize> {
        self.0
    }

    pub(crate) fn open(self) -> usize {
        self.0.unwrap_or(0)
    }

    /// It asks for `count`. So many of them it was sure of.
    pub(crate) fn uses(&mut self, count: usize) -> usize {
        let Some(open) = &mut self.0 else {
            return 0;
        };
        let sure = count.min(*open);
        *open -= sure;
        sure
    }

    /// Half of its `window` is used up.
    pub(crate) fn is_low(self, window: usize) -> bool {
        self.0.is_some_and(|open| open <= window / 2)
    }

    /// Grants it what is missing of its `window`, as far as there is `room`.
    pub(crate) fn grant(&mut self, window: usize, room: usize) -> Option<usize> {
        let open = self.0.as_mut()?;
        let more = window.saturating_sub(*open).min(room);
        *open += more;
        (more > 0).then_some(more)
    }
}

/// How many of the service's `most` connections are nobody's, while so many are `moving` from one worker to another.
pub(crate) fn unclaimed(most: usize, moving: usize, shares: impl Iterator<Item = Share>) -> usize {
    shares.fold(most.saturating_sub(moving), |left, share| left.saturating_sub(share.claim()))
}

/// Whether the service, which may hold `most` connections and holds so many, has room for more. What [`give_out`] leaves lying, of each
/// worker's part a sixteenth at most, is none.
pub(crate) fn has_room(most: usize, held: usize) -> bool {
    held < most - most / 16
}

/// Gives out what is nobody's to those that may not hold their whole part, as evenly as that goes. Who has changed is returned,
/// with how many it may hold now.
pub(crate) fn give_out(
    mut unclaimed: usize,
    shares: &mut [(WorkerId, &mut Share)],
) -> Vec<(WorkerId, usize)> {
    let mut short: Vec<_> = shares.iter_mut().filter(|(_, share)| share.may_hold < share.most()).collect();
    let lacks = |share: &Share| share.part.saturating_sub(share.claim());
    short.sort_by_key(|(worker, share)| (lacks(share), *worker));
    let mut told = Vec::new();
    let mut others = short.len();
    for (worker, share) in short {
        let given = lacks(share).min(unclaimed / others);
        others -= 1;
        let may_hold = (share.claim() - share.leaving() + given).min(share.most());
        // Each change is a message: not for every connection that ends.
        if may_hold == share.most() || may_hold - share.may_hold > share.part / 16 {
            share.may_hold = may_hold;
            share.was_told = share.was_told.max(may_hold);
            unclaimed -= given;
            told.push((*worker, may_hold));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One whose part is 100, and that was told so.
    fn told(may_hold: usize) -> Share {
        Share { part: 100, ..Share::left(may_hold) }
    }

    /// Two workers of a service that has 200 at most, and what becomes of them.
    struct SharesScene(Vec<(WorkerId, Share)>);

    impl SharesScene {
        fn new() -> Self {
            Self(vec![(1, told(100)), (2, told(100))])
        }

        fn free(&self, moving: usize) -> usize {
            unclaimed(200, moving, self.0.iter().map(|(_, share)| *share))
        }

        fn give_out(&mut self, moving: usize) -> Vec<(WorkerId, usize)> {
            let free = self.free(moving);
            give_out(free, &mut self.0.iter_mut().map(|(worker, share)| (*worker, share)).collect::<Vec<_>>())
        }

        fn share(&mut self, worker: WorkerId) -> &mut Share {
            &mut self.0.iter_mut().find(|(id, _)| *id == worker).unwrap().1
        }

        /// A worker dies with so many, which wait, and another is born.
        fn replace(&mut self, dead: WorkerId, had: usize, next: WorkerId) -> usize {
            self.0.retain(|(worker, _)| *worker != dead);
            let free = self.free(had);
            self.0.push((next, told(free)));
            free
        }
    }

    #[test]
    fn whoever_replaces_a_full_worker_accepts_only_as_the_connections_of_that_one_end() {
        let mut scene = SharesScene::new();
        assert_eq!((scene.free(0), scene.give_out(0)), (0, vec![]));
        assert_eq!(scene.replace(1, 100, 3), 0, "all that it had waits");
        assert_eq!(scene.give_out(100), []);
        scene.share(2).adopted(200);
        assert_eq!(scene.give_out(0), [], "the other one holds them now");
        scene.share(2).gave_up(150);
        assert_eq!(scene.give_out(0), [(3, 50)]);
        scene.share(2).gave_up(149);
        assert_eq!(scene.give_out(0), [], "not worth a message");
        scene.share(2).gave_up(90);
        assert_eq!(scene.give_out(0), [(3, 100)]);
        assert_eq!(scene.free(0), 0);
    }

    #[test]
    fn deaths_without_end_add_up_to_no_more_than_the_service_may_have() {
        let mut scene = SharesScene::new();
        let (mut dying, mut other) = (1, 2);
        for next in 3..20 {
            let had = scene.share(dying).claim();
            scene.replace(dying, had, next);
            let kept = scene.share(other).claim() + had;
            scene.share(other).adopted(kept);
            scene.give_out(0);
            assert_eq!(scene.free(0), 0);
            assert!(scene.0.iter().map(|(_, share)| share.claim()).sum::<usize>() <= 200);
            (dying, other) = (other, next);
        }
    }

    #[test]
    fn a_worker_that_is_added_gets_its_part_from_the_others() {
        let (mut scene, now) = (SharesScene::new(), Instant::now());
        scene.0.push((3, told(0)));
        assert!(scene.share(1).has_part(67, 20, now));
        assert!(scene.share(2).has_part(67, 90, now));
        assert!(!scene.share(3).has_part(67, 0, now));
        scene.share(1).has_heard(20);
        scene.share(2).has_heard(90);
        assert_eq!(scene.give_out(0), [(3, 43)]);
        scene.share(2).gave_up(60);
        assert_eq!(scene.give_out(0), [(3, 66)], "all that there is");
        scene.share(3).ends(0);
        assert_eq!(
            (scene.share(1).has_part(100, 20, now), scene.share(2).has_part(100, 60, now)),
            (false, false)
        );
        assert!(!scene.share(3).has_part(100, 0, now));
        assert_eq!(scene.give_out(0), [(1, 100), (2, 100)]);
    }

    #[test]
    fn while_one_boots_the_others_may_hold_its_part_too() {
        let (mut scene, now) = (SharesScene::new(), Instant::now());
        scene.0.retain(|(worker, _)| *worker != 1);
        scene.0.push((3, Share::at_birth()));
        scene.share(2).adopted(140);
        assert!(!scene.share(2).has_part(200, 140, now));
        let free = scene.free(0);
        assert_eq!(give_out(free, &mut [(2, scene.share(2))]), [(2, 200)], "the other one hears nothing yet");
        // It is ready.
        assert!(scene.share(2).has_part(100, 150, now));
        assert!(!scene.share(3).has_part(100, 0, now));
        assert_eq!(scene.give_out(0), [], "the other one may go on accepting until it has heard");
        scene.share(2).has_heard(170);
        assert_eq!(scene.give_out(0), [(3, 30)]);
        scene.share(2).gave_up(120);
        assert_eq!(scene.give_out(0), [(3, 80)]);
    }

    #[test]
    fn whoever_was_told_less_twice_has_heard_when_he_has_said_so_twice_or_says_nothing() {
        let (mut share, now) = (told(100), Instant::now());
        assert!(share.has_part(60, 0, now) && share.has_part(40, 0, now));
        share.has_heard(0);
        assert_eq!((share.moment().is_some(), share.claim()), (true, 100));
        share.has_heard(50);
        assert_eq!((share.moment().is_some(), share.claim()), (false, 50));
        assert!(share.has_part(30, 50, now));
        assert_eq!(share.moment(), Some(now + HEARS_WITHIN));
        assert_eq!((share.has_part(30, 50, now + HEARS_WITHIN), share.moment()), (false, None));
    }

    #[test]
    fn what_is_let_go_is_not_accepted_beside_those_who_move() {
        let (mut scene, now) = (SharesScene::new(), Instant::now());
        // The one has 60 and the other none, in the midst of a burst.
        scene.share(1).releases(30, now);
        assert!(scene.share(1).has_part(100, 60, now));
        assert!(!scene.share(2).has_part(100, 0, now));
        assert_eq!(scene.share(1).may_hold(), 70);
        assert_eq!((scene.free(0), scene.give_out(0)), (0, vec![]));
        scene.share(1).has_heard(70);
        assert_eq!((scene.free(0), scene.give_out(0)), (0, vec![]), "30 of its 70 are about to go");
        scene.share(1).offered(20);
        scene.share(1).gave_up(50);
        assert_eq!((scene.free(20), scene.give_out(20)), (0, vec![]), "they are on their way");
        scene.share(1).offered(10);
        scene.share(1).gave_up(40);
        assert_eq!((scene.free(30), scene.give_out(30)), (0, vec![]));
        scene.share(2).adopted(130);
        assert_eq!(scene.free(0), 0, "the other one had filled its part");
        assert!(!scene.share(1).has_part(100, 70, now));
        scene.share(2).gave_up(90);
        assert_eq!(scene.give_out(0), [(1, 100)]);
    }

    #[test]
    fn a_worker_that_does_not_let_go_may_hold_its_part_again() {
        let (mut share, now) = (told(100), Instant::now());
        share.releases(30, now);
        assert!(share.has_part(100, 60, now));
        share.has_heard(60);
        share.offered(10);
        let late = share.moment().expect("it is waited for the other 20");
        assert_eq!((share.claim(), share.has_part(100, 60, late), share.claim()), (90, false, 70));
        assert_eq!((give_out(30, &mut [(1, &mut share)]), share.moment()), (vec![(1, 100)], None));
        share.releases(10, now);
        share.releases(5, now);
        assert_eq!(share.leaving(), 10, "the five are among them");
        share.ends(60);
        assert_eq!(share.moment(), None);
    }

    #[test]
    fn the_service_has_no_room_once_it_holds_about_as_many_as_it_may() {
        let table = [
            (200, 0, true),
            (200, 187, true),
            (200, 188, false),
            (200, 240, false),
            (1, 0, true),
            (1, 1, false),
        ];
        for (most, held, expected) in table {
            assert_eq!(has_room(most, held), expected, "{held} of {most}");
        }
        let mut share = told(100);
        assert!(share.hears_of_room(true) && !share.hears_of_room(true));
        assert!(share.hears_of_room(false) && !share.hears_of_room(false));
        share.ends(10);
        assert!(!share.hears_of_room(true), "it accepts no more");
        let mut left = Share::left(100);
        assert!(left.hears_of_room(true), "what a program before has told is not known");
    }

    #[test]
    fn a_generation_that_leaves_makes_room_for_the_next() {
        let mut scene = SharesScene::new();
        scene.0.extend([(3, told(0)), (4, told(0))]);
        assert_eq!(scene.give_out(0), [], "those that serve may still accept");
        scene.share(1).ends(10);
        scene.share(2).ends(30);
        assert_eq!(scene.give_out(0), [(3, 80), (4, 80)]);
        assert_eq!(scene.share(1).may_keep(5), 105, "what it has accepted is kept yet");
        scene.share(2).gave_up(0);
        scene.share(3).adopted(20);
        assert_eq!(scene.give_out(10), [(3, 90), (4, 90)]);
    }

    #[test]
    fn what_a_worker_asks_to_have_kept_is_no_claim_to_more() {
        let mut share = told(100);
        assert_eq!(share.may_keep(10), 110);
        share.gave_up(110);
        assert_eq!((share.claim(), share.may_keep(10)), (100, 110));
        share.adopted(150);
        assert_eq!((share.claim(), share.may_keep(10)), (150, 160));
    }

    #[test]
    fn a_worker_is_granted_as_many_as_it_may_ask_for_in_one_go_while_there_is_room() {
        let mut credit = Credit::new(Some(8));
        assert_eq!(credit.uses(3), 3);
        assert!(!credit.is_low(8), "a grant is a message");
        assert_eq!((credit.uses(2), credit.open()), (2, 3));
        assert!(credit.is_low(8));
        assert_eq!((credit.grant(8, 100), credit.open()), (Some(5), 8));
        assert_eq!(credit.uses(10), 8, "the others it was not sure of");
        assert_eq!(credit.grant(8, 0), None);
        assert_eq!((credit.grant(8, 2), credit.open()), (Some(2), 2));
        assert_eq!((credit.grant(1, 9), credit.open()), (None, 2), "what was granted is not taken back");
    }

    #[test]
    fn a_worker_that_knows_of_no_credit_has_none_and_is_told_of_none() {
        let mut credit = Credit::new(None);
        assert_eq!(
            (credit.uses(3), credit.open(), credit.is_low(8), credit.grant(8, 9)),
            (0, 0, false, None)
        );
    }
}
