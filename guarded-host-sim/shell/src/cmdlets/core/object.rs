//! Cmdlets that choose, sort, count and group objects.

use std::{cmp::Ordering, rc::Rc};

use crate::{
    call::Call,
    cmdlets::{Implementation, Run, Staged},
    error::{Category, ErrorRecord, Outcome, Stop},
    eval::{equal, order, own_property, property_of},
    format::property_names,
    value::{Entries, Object, Value, convert},
    wildcard::Wildcard,
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Select-Object",
        implemented: &[
            "Property",
            "InputObject",
            "ExcludeProperty",
            "ExpandProperty",
            "Unique",
            "Last",
            "First",
            "Skip",
            "SkipLast",
            "Index",
        ],
        without_effect: &[(
            "Wait",
            "what comes before is ended as soon as enough has come, which only saves time",
        )],
        rejected: &[],
        run: Run::Staged(|| Box::new(Select::default())),
    },
    Implementation {
        cmdlet: "Sort-Object",
        implemented: &["Property", "Descending", "Unique", "InputObject", "CaseSensitive"],
        without_effect: &[("Culture", "texts are sorted by their letters in every culture")],
        rejected: &[],
        run: Run::All(sort_object),
    },
    Implementation {
        cmdlet: "Measure-Object",
        implemented: &[
            "Property",
            "InputObject",
            "Sum",
            "Average",
            "Maximum",
            "Minimum",
            "Line",
            "Word",
            "Character",
            "IgnoreWhiteSpace",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::All(measure_object),
    },
    Implementation {
        cmdlet: "Group-Object",
        implemented: &[
            "Property",
            "NoElement",
            "AsHashTable",
            "AsString",
            "InputObject",
            "CaseSensitive",
        ],
        without_effect: &[("Culture", "texts are compared by their letters in every culture")],
        rejected: &[],
        run: Run::All(group_object),
    },
    Implementation {
        cmdlet: "New-Object",
        implemented: &["TypeName", "ArgumentList", "Property"],
        without_effect: &[],
        rejected: &[
            ("ComObject", "there are no COM objects"),
            ("Strict", "there are no COM objects"),
        ],
        run: Run::Each(new_object),
    },
];

#[derive(Default)]
struct Select {
    seen: Vec<Value>,
    kept: Vec<Value>,
    count: i64,
    given: i64,
}

impl Staged for Select {
    fn process(&mut self, call: &mut Call<'_>) -> Outcome {
        let Some(item) = call.input().cloned().or_else(|| call.get("InputObject")) else {
            return Ok(());
        };
        let index = self.count;
        self.count += 1;
        if let Some(wanted) = call.get("Index") {
            let wanted = wanted.each().iter().any(|own| equal(own, &Value::Int(index), false));
            return if wanted { self.give(call, &item) } else { Ok(()) };
        }
        if call.get("Last").is_some() || call.get("SkipLast").is_some() {
            self.kept.push(item);
            return Ok(());
        }
        if index < call.integer("Skip").unwrap_or(0) {
            return Ok(());
        }
        let first = call.integer("First");
        if first.is_some_and(|first| self.given >= first) {
            return Err(enough(call));
        }
        self.give(call, &item)?;
        if first.is_some_and(|first| self.given >= first) && call.get("Last").is_none() {
            return Err(enough(call));
        }
        Ok(())
    }

    fn end(&mut self, call: &mut Call<'_>) -> Outcome {
        let kept = std::mem::take(&mut self.kept);
        let number = |value: i64| usize::try_from(value).unwrap_or_default();
        let skip = number(call.integer("Skip").unwrap_or(0));
        let chosen: Vec<Value> = match (call.integer("Last"), call.integer("SkipLast")) {
            (Some(last), _) => {
                let first = number(call.integer("First").unwrap_or(0));
                let until = kept.len().saturating_sub(skip);
                let from = until.saturating_sub(number(last)).max(first.min(until));
                let head = kept.iter().take(first.min(until));
                head.chain(kept.get(from..until).unwrap_or_default()).cloned().collect()
            }
            (None, Some(last)) => kept
                .into_iter()
                .rev()
                .skip(number(last))
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect(),
            (None, None) => Vec::new(),
        };
        chosen.iter().try_for_each(|item| self.give(call, item))
    }
}

impl Select {
    fn give(&mut self, call: &mut Call<'_>, item: &Value) -> Outcome {
        self.given += 1;
        if let Some(name) = call.text("ExpandProperty") {
            let Some(value) = own_property(item, &name) else {
                let record = ErrorRecord::new(
                    Category::InvalidArgument,
                    "ExpandPropertyNotFound",
                    format!("Property \"{name}\" cannot be found."),
                );
                return call.error(record.about(item.clone()).exception("PSArgumentException"));
            };
            for value in value.each() {
                self.write_new(call, value)?;
            }
            return Ok(());
        }
        let value = match call.get("Property") {
            None => item.clone(),
            Some(wanted) => selected(call, item, &wanted.each())?,
        };
        self.write_new(call, value)
    }

    fn write_new(&mut self, call: &mut Call<'_>, value: Value) -> Outcome {
        if call.switch("Unique") {
            if self.seen.iter().any(|own| same(own, &value)) {
                return Ok(());
            }
            self.seen.push(value.clone());
        }
        call.write(value)
    }
}

fn enough(call: &mut Call<'_>) -> Stop {
    call.common.enough = true;
    Stop::Enough(call.common.pipeline)
}

/// An object with chosen and computed properties.
fn selected(call: &mut Call<'_>, item: &Value, wanted: &[Value]) -> Outcome<Value> {
    let mut properties = Entries::default();
    for one in wanted {
        if let Value::Table(_) = one {
            let (name, value) = computed(call, one, item)?;
            properties.set(&name, value);
            continue;
        }
        let pattern = convert::to_text(one);
        match crate::wildcard::is_pattern(&pattern) {
            true => {
                let own = Wildcard::new(&pattern);
                for name in property_names(item).iter().filter(|name| own.matches(name)) {
                    properties.set(name, property_of(item, name));
                }
            }
            false => properties.set(&pattern, property_of(item, &pattern)),
        }
    }
    for name in call.texts("ExcludeProperty") {
        let own = Wildcard::new(&name);
        let names: Vec<String> = properties
            .iter()
            .map(|(name, _)| name.to_owned())
            .filter(|n| own.matches(n))
            .collect();
        for name in names {
            properties.remove(&name);
        }
    }
    let object = Object::new::<String>("PSCustomObject", std::iter::empty());
    *object.properties.borrow_mut() = properties;
    Ok(Value::Object(Rc::new(object)))
}

/// `@{Name='x'; Expression={…}}`: the name and what the expression gives for an object.
pub(super) fn computed(call: &mut Call<'_>, wanted: &Value, item: &Value) -> Outcome<(String, Value)> {
    let Value::Table(entries) = wanted else {
        let name = convert::to_text(wanted);
        let value = match wanted {
            Value::Block(block) => evaluated(call, block, item)?,
            _ => property_of(item, &name),
        };
        return Ok((name, value));
    };
    let entry = |names: &[&str]| {
        let entries = entries.borrow();
        let mut all = entries.iter();
        // Abbreviated as parameters are.
        let begins = |own: &str, wanted: &str| {
            wanted
                .get(..own.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(own))
        };
        let found = all.find(|(own, _)| names.iter().any(|wanted| !own.is_empty() && begins(own, wanted)));
        found.map(|(_, value)| value.clone())
    };
    let expression = entry(&["Expression"]);
    let name = entry(&["Name", "Label"]).map(|value| convert::to_text(&value));
    let value = match &expression {
        Some(Value::Block(block)) => evaluated(call, block, item)?,
        Some(other) => property_of(item, &convert::to_text(other)),
        None => {
            return Err(call.fail(ErrorRecord::new(
                Category::InvalidArgument,
                "DictionaryKeyMandatoryEntry",
                "The key 'Expression' is missing in the property's hashtable.",
            )));
        }
    };
    let name = name.unwrap_or_else(|| expression.map(|value| convert::to_text(&value)).unwrap_or_default());
    Ok((name, value))
}

fn evaluated(call: &mut Call<'_>, block: &Rc<crate::value::Block>, item: &Value) -> Outcome<Value> {
    let mut output = Vec::new();
    call.session.run_here(block, item.clone(), &mut output)?;
    Ok(Value::from_output(output))
}

/// Whether two objects look the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a_object), Value::Object(b_object)) if a_object.hidden.borrow().get("ToString").is_none() => {
            let (names, others) = (property_names(a), property_names(b));
            names == others
                && a_object.kind() == b_object.kind()
                && names
                    .iter()
                    .all(|name| same(&property_of(a, name), &property_of(b, name)))
        }
        (Value::List(a), Value::List(b)) => {
            let (a, b) = (a.borrow(), b.borrow());
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(a, b))
        }
        _ => equal(a, b, true),
    }
}

fn sort_object(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let wanted = call.get("Property").map(|value| value.each()).unwrap_or_default();
    let (down, case) = (call.switch("Descending"), call.switch("CaseSensitive"));
    let mut rows: Vec<(Vec<(Value, bool)>, Value)> = Vec::new();
    for item in items {
        let mut keys = Vec::new();
        for one in &wanted {
            let own_way = match one {
                Value::Table(entries) => {
                    let entries = entries.borrow();
                    let flag = |name: &str| entries.get(name).map(Value::is_true);
                    flag("Descending").or(flag("Ascending").map(|up| !up))
                }
                _ => None,
            };
            keys.push((computed(call, one, &item)?.1, own_way.unwrap_or(down)));
        }
        if wanted.is_empty() {
            keys.push((item.clone(), down));
        }
        rows.push((keys, item));
    }
    let compare = |a: &[(Value, bool)], b: &[(Value, bool)]| {
        let each = a.iter().zip(b).map(|((a, down), (b, _))| {
            let ordering = order(a, b, case).unwrap_or(Ordering::Equal);
            if *down { ordering.reverse() } else { ordering }
        });
        each.fold(Ordering::Equal, Ordering::then)
    };
    rows.sort_by(|(a, _), (b, _)| compare(a, b));
    if call.switch("Unique") {
        rows.dedup_by(|(a, _), (b, _)| compare(a, b) == Ordering::Equal);
    }
    call.write_all(rows.into_iter().map(|(_, item)| item))
}

fn measure_object(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let names = call.texts("Property");
    if ["Line", "Word", "Character"].iter().any(|name| call.switch(name)) {
        return measure_text(call, &items);
    }
    let names: Vec<Option<String>> = match names.is_empty() {
        true => vec![None],
        false => names.into_iter().map(Some).collect(),
    };
    for name in names {
        let values: Vec<Value> = match &name {
            None => items.clone(),
            Some(name) => items.iter().filter_map(|item| own_property(item, name)).collect(),
        };
        if let Some(name) = name.as_ref().filter(|_| values.is_empty() && !items.is_empty()) {
            let record = ErrorRecord::new(
                Category::InvalidArgument,
                "GenericMeasurePropertyNotFound",
                format!("The property \"{name}\" cannot be found in the input for any objects."),
            );
            call.error(record.exception("PSArgumentException"))?;
            continue;
        }
        let measured = measured(call, &values, name)?;
        call.write(measured)?;
    }
    Ok(())
}

fn measured(call: &mut Call<'_>, values: &[Value], name: Option<String>) -> Outcome<Value> {
    let wants = |call: &Call<'_>, name: &str| call.switch(name);
    let (sum, average) = (wants(call, "Sum"), wants(call, "Average"));
    let (maximum, minimum) = (wants(call, "Maximum"), wants(call, "Minimum"));
    let mut total = 0.0;
    if sum || average {
        for value in values {
            total += number(value).map_err(|record| call.fail(record))?;
        }
    }
    let whole = |number: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "it is a whole number within bounds")]
        match number.fract() == 0.0 && number.abs() < 9e15 {
            true => Value::Int(number as i64),
            false => Value::Real(number),
        }
    };
    let end = |wanted: Ordering| {
        let best = values.iter().reduce(|best, value| match order(value, best, false) {
            Ok(ordering) if ordering == wanted => value,
            _ => best,
        });
        best.cloned().unwrap_or(Value::Null)
    };
    #[expect(clippy::cast_precision_loss, reason = "numbers of objects")]
    let count = values.len() as f64;
    let shown = |wanted: bool, value: Value| if wanted { value } else { Value::Null };
    Ok(Value::object(
        "GenericMeasureInfo",
        [
            ("Count", Value::Int(i64::try_from(values.len()).unwrap_or(i64::MAX))),
            ("Average", shown(average && count > 0.0, whole(total / count))),
            ("Sum", shown(sum, whole(total))),
            ("Maximum", shown(maximum, end(Ordering::Greater))),
            ("Minimum", shown(minimum, end(Ordering::Less))),
            ("Property", name.map_or(Value::Null, Value::text)),
        ],
    ))
}

fn number(value: &Value) -> Result<f64, ErrorRecord> {
    match crate::eval::cast(value, "double") {
        Ok(Value::Real(number)) => Ok(number),
        Ok(_) => Ok(0.0),
        Err(record) => Err(record),
    }
}

fn measure_text(call: &mut Call<'_>, items: &[Value]) -> Outcome {
    let text: Vec<String> = items.iter().map(convert::to_text).collect();
    let blank = call.switch("IgnoreWhiteSpace");
    let characters = |line: &String| line.chars().filter(|c| !(blank && c.is_whitespace())).count();
    let count = |wanted: bool, count: usize| match wanted {
        true => Value::Int(i64::try_from(count).unwrap_or(i64::MAX)),
        false => Value::Null,
    };
    let lines = text.iter().map(|line| line.lines().count().max(1)).sum();
    let words = text.iter().map(|line| line.split_whitespace().count()).sum();
    let characters = text.iter().map(characters).sum();
    let measured = Value::object(
        "TextMeasureInfo",
        [
            ("Lines", count(call.switch("Line"), lines)),
            ("Words", count(call.switch("Word"), words)),
            ("Characters", count(call.switch("Character"), characters)),
            ("Property", Value::Null),
        ],
    );
    call.write(measured)
}

fn group_object(call: &mut Call<'_>, items: Vec<Value>) -> Outcome {
    let wanted = call.get("Property").map(|value| value.each()).unwrap_or_default();
    let case = call.switch("CaseSensitive");
    let mut groups: Vec<(Vec<Value>, Vec<Value>)> = Vec::new();
    for item in items {
        let mut keys = Vec::new();
        for one in &wanted {
            keys.push(computed(call, one, &item)?.1);
        }
        if wanted.is_empty() {
            keys.push(item.clone());
        }
        let fits = |own: &[Value]| own.iter().zip(&keys).all(|(a, b)| equal(a, b, case));
        match groups.iter_mut().find(|(own, _)| fits(own)) {
            Some((_, members)) => members.push(item),
            None => groups.push((keys, vec![item])),
        }
    }
    let name = |keys: &[Value]| keys.iter().map(convert::to_text).collect::<Vec<_>>().join(", ");
    if call.switch("AsHashTable") {
        let entries = groups
            .iter()
            .map(|(keys, members)| (name(keys), Value::list(members.clone())));
        return call.write(Value::table(entries.collect()));
    }
    let no_element = call.switch("NoElement");
    for (keys, members) in groups {
        let mut properties = vec![
            ("Count", Value::Int(i64::try_from(members.len()).unwrap_or(i64::MAX))),
            ("Name", Value::text(name(&keys))),
        ];
        if !no_element {
            properties.push(("Group", Value::list(members)));
        }
        call.write(Value::object("GroupInfo", properties))?;
    }
    Ok(())
}

fn new_object(call: &mut Call<'_>) -> Outcome {
    let kind = call.text("TypeName").unwrap_or_default();
    let arguments = call.get("ArgumentList").map(|value| value.each()).unwrap_or_default();
    let made = call
        .session
        .new_object(&kind, &arguments)
        .map_err(|record| call.fail(record))?;
    if let (Some(Value::Table(entries)), Value::Object(object)) = (call.get("Property"), &made) {
        for (name, value) in entries.borrow().iter() {
            object.properties.borrow_mut().set(name, value.clone());
        }
    }
    call.write(made)
}
