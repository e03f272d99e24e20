//! Points in time, UTC, to the second: the calendar that `Get-Date`, casts and comparisons need.

use std::fmt;

/// Seconds since 1970 began, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(pub i64);

impl Date {
    /// A day of the calendar with the second in it; nothing, if there is no such day.
    pub fn from_calendar(year: i64, month: i64, day: i64, second: i64) -> Option<Date> {
        let valid = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && (0..86_400).contains(&second);
        if !valid {
            return None;
        }
        // Years begin in March here, so that the leap day is a year's last.
        let (year, month) = if month <= 2 {
            (year - 1, month + 9)
        } else {
            (year, month - 3)
        };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * month + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        Some(Date((era * 146_097 + day_of_era - 719_468) * 86_400 + second))
    }

    /// Year, month and day.
    pub fn calendar(self) -> (i64, i64, i64) {
        let days = self.0.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        (year_of_era + era * 400 + carry, month, day)
    }

    /// Hour, minute and second.
    pub fn clock(self) -> (i64, i64, i64) {
        let second = self.0.rem_euclid(86_400);
        (second / 3600, second / 60 % 60, second % 60)
    }

    /// Reads `2016-12-20`, `2016-12-20 13:45`, `2016-12-20T13:45:10Z`, `12/20/2016 1:45:10 PM`: year
    /// first, or as Americans write it.
    pub fn parse(text: &str) -> Option<Date> {
        let text = text.trim().trim_end_matches(['Z', 'z']);
        let (day, time) = match text.split_once(['T', ' ']) {
            Some((day, time)) => (day, time.trim()),
            None => (text, ""),
        };
        let number = |text: &str| -> Option<i64> {
            let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().ok())?
        };
        let parts: Vec<&str> = day.split(['-', '/', '.']).collect();
        let &[first, second, third] = parts.as_slice() else {
            return None;
        };
        let (year, month, date) = match first.len() {
            4 => (first, second, third),
            _ => (third, first, second),
        };
        Date::from_calendar(number(year)?, number(month)?, number(date)?, clock_of(time, number)?)
    }

    /// As Windows prints it by default: `Tuesday, December 20, 2016 1:45:10 PM`.
    pub fn long(self) -> String {
        let (year, month, day) = self.calendar();
        let weekday = usize::try_from((self.0.div_euclid(86_400) + 4).rem_euclid(7)).unwrap_or_default();
        let month = usize::try_from(month - 1).unwrap_or_default();
        let weekday = WEEKDAYS.get(weekday).unwrap_or(&"");
        let month = MONTHS.get(month).unwrap_or(&"");
        format!("{weekday}, {month} {day}, {year} {}", self.twelve_hours())
    }

    fn twelve_hours(self) -> String {
        let (hour, minute, second) = self.clock();
        let half = if hour < 12 { "AM" } else { "PM" };
        let hour = if hour % 12 == 0 { 12 } else { hour % 12 };
        format!("{hour}:{minute:02}:{second:02} {half}")
    }

    /// `2016-12-20T13:45:10Z`.
    pub fn iso(self) -> String {
        let ((year, month, day), (hour, minute, second)) = (self.calendar(), self.clock());
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

fn clock_of(text: &str, number: impl Fn(&str) -> Option<i64>) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let upper = text.to_ascii_uppercase();
    let (digits, half) = match (upper.strip_suffix("AM"), upper.strip_suffix("PM")) {
        (Some(digits), _) => (digits, Some(0)),
        (_, Some(digits)) => (digits, Some(12)),
        _ => (upper.as_str(), None),
    };
    let mut parts = digits.trim().split(':').map(number);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    let hour = match half {
        Some(_) if !(1..=12).contains(&hour) => return None,
        Some(half) => hour % 12 + half,
        None => hour,
    };
    let valid = parts.next().is_none() && hour < 24 && minute < 60 && second < 60;
    valid.then_some(hour * 3600 + minute * 60 + second)
}

/// `12/20/2016 1:45:10 PM`, as text in a string or a table has it.
impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.calendar();
        write!(f, "{month}/{day}/{year} {}", self.twelve_hours())
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_printed_as_windows_does() {
        let date = Date::parse("2016-12-20 13:45:10").unwrap();
        assert_eq!(date.to_string(), "12/20/2016 1:45:10 PM");
        assert_eq!(date.long(), "Tuesday, December 20, 2016 1:45:10 PM");
        assert_eq!(date.iso(), "2016-12-20T13:45:10Z");
        assert_eq!(Date::parse("12/20/2016 1:45:10 PM"), Some(date));
        assert_eq!(Date::parse("2016-12-20T13:45:10Z"), Some(date));
        assert_eq!(Date::parse("1970-01-01"), Some(Date(0)));
        assert_eq!(Date::parse("2000-02-29").unwrap().0, 951_782_400);
        assert_eq!(Date::parse("12/20/2016 12:00 AM"), Date::parse("2016-12-20"));
        for wrong in [
            "",
            "yesterday",
            "2016-13-01",
            "2015-02-29",
            "2016-1-1 25:00",
            "2016-1-1 13:00 PM",
            "1-2",
        ] {
            assert_eq!(Date::parse(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_day_is_the_day_it_was_made_of(seconds in -60_000_000_000_i64..250_000_000_000) {
            let date = Date(seconds);
            let (year, month, day) = date.calendar();
            let (hour, minute, second) = date.clock();
            let again = Date::from_calendar(year, month, day, hour * 3600 + minute * 60 + second);
            proptest::prop_assert_eq!(again, Some(date));
        }
    }
}
