//! What a long-running command has to do, and when. Tasks that are due are done in their order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// From the first netlink event to looking at what should be in the kernel.
pub const RECONCILE_DEBOUNCE: Duration = Duration::from_millis(50);
/// Shortest time between two repairs: somebody who removes a route again and again is not fought faster than this.
pub const RECONCILE_PERIOD_MIN: Duration = Duration::from_secs(1);
/// First and longest pause before a process that ended is started again, or a repair that failed is repeated; each failure
/// doubles it.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// See [`RETRY_PAUSE_MIN`].
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that lived this long was well, and the next pause is the first again.
pub const RESTART_HEALTHY: Duration = Duration::from_secs(10);

/// When each task falls due.
#[derive(Debug)]
pub struct Agenda<Task>(BTreeMap<Task, Instant>);

impl<Task: Copy + Ord> Default for Agenda<Task> {
    fn default() -> Self {
        Agenda(BTreeMap::new())
    }
}

impl<Task: Copy + Ord> Agenda<Task> {
    /// Makes `task` due at `at`, unless it is due earlier.
    pub fn add(&mut self, task: Task, at: Instant) {
        let due = self.0.entry(task).or_insert(at);
        *due = at.min(*due);
    }

    /// Takes the first task that is due.
    pub fn take(&mut self, now: Instant) -> Option<Task> {
        let task = self.0.iter().find(|(_, due)| **due <= now).map(|(task, _)| *task)?;
        self.0.remove(&task);
        Some(task)
    }

    /// Whether `task` is due some time.
    pub fn holds(&self, task: Task) -> bool {
        self.0.contains_key(&task)
    }

    /// How long there is nothing to do.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        self.0.values().min().map(|due| due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Task {
        ReadFile,
        RestartWeftd,
        Resolve,
        Reconcile,
    }

    #[test]
    fn a_task_falls_due_at_its_earliest_time_and_once() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        agenda.add(Task::Resolve, now + Duration::from_secs(5));
        agenda.add(Task::Resolve, now + Duration::from_secs(9));
        agenda.add(Task::Reconcile, now);
        assert_eq!(agenda.idle(now), Some(Duration::ZERO));
        assert_eq!((agenda.take(now), agenda.take(now)), (Some(Task::Reconcile), None));
        assert_eq!(agenda.idle(now), Some(Duration::from_secs(5)));
        assert_eq!(agenda.take(now + Duration::from_secs(5)), Some(Task::Resolve));
        assert_eq!(agenda.idle(now), None);
    }

    #[test]
    fn what_is_due_is_done_in_the_order_of_the_tasks() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        for task in [Task::Reconcile, Task::RestartWeftd, Task::ReadFile] {
            agenda.add(task, now);
        }
        let order = [agenda.take(now), agenda.take(now), agenda.take(now)];
        assert_eq!(order, [Some(Task::ReadFile), Some(Task::RestartWeftd), Some(Task::Reconcile)]);
    }
}
