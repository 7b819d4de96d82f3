//! Schedules: five fields or a nickname such as `@daily`, in a time zone. Pure.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// The most missed times that are counted one by one.
const MANY: usize = 100;

/// A parsed schedule.
#[derive(Debug)]
pub struct Schedule {
    when: When,
    zone: TimeZone,
}

#[derive(Debug)]
enum When {
    Cron(Box<Cron>),
    /// Every so many seconds.
    Every(i64),
}

/// Times that passed.
#[derive(Debug, Default, PartialEq)]
pub struct Missed {
    /// The latest of them.
    pub last: Option<Timestamp>,
    /// How many there are; counting ends at a hundred.
    pub count: usize,
}

impl Schedule {
    /// Reads a schedule. The error says what is wrong, for people.
    pub fn parse(schedule: &str, zone: Option<&str>) -> Result<Self, String> {
        let (text, zone) = match schedule.strip_prefix("TZ=").or(schedule.strip_prefix("CRON_TZ=")) {
            Some(rest) => rest.split_once(' ').map_or((rest, zone), |(zone, text)| (text, Some(zone))),
            None => (schedule, zone),
        };
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}"))?,
        };
        if let Some(every) = text.strip_prefix("@every ") {
            let span: Span = every.trim().parse().map_err(|_| format!("no duration: {every:?}"))?;
            let seconds = span.total(jiff::Unit::Second).map_err(|error| error.to_string())?;
            if !(1.0..1e10).contains(&seconds) {
                return Err(format!("no duration of a second or more: {every:?}"));
            }
            return Ok(Self { when: When::Every(seconds as i64), zone });
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| error.to_string())?;
        Ok(Self { when: When::Cron(Box::new(cron)), zone })
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Cron(cron) => {
                let after = after.to_zoned(self.zone.clone());
                cron.find_next_occurrence(&after, false).ok().map(|next| next.timestamp())
            }
            When::Every(seconds) => Timestamp::from_second(after.as_second() + seconds).ok(),
        }
    }

    /// The times after `since` up to `now`.
    pub fn missed(&self, since: Timestamp, now: Timestamp) -> Missed {
        let mut missed = Missed::default();
        let mut at = since;
        while let Some(next) = self.next(at).filter(|next| *next <= now) {
            missed.count += 1;
            missed.last = Some(next);
            at = next;
            if missed.count >= MANY {
                missed.last = self.latest(now).or(missed.last);
                break;
            }
        }
        missed
    }

    // The latest time up to `now`, when there are too many to go through.
    fn latest(&self, now: Timestamp) -> Option<Timestamp> {
        let When::Cron(cron) = &self.when else { return Some(now) };
        let now = now.to_zoned(self.zone.clone());
        cron.find_previous_occurrence(&now, true).ok().map(|at| at.timestamp())
    }
}
