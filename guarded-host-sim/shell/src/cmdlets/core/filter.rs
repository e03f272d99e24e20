//! Where-Object, ForEach-Object: what is done with each object of a pipeline.

use crate::{
    call::Call,
    cmdlets::{Implementation, Run, Staged},
    error::Outcome,
    eval::{apply, own_property, property_of, sink::Onward},
    syntax::ast::BinaryOp,
    value::{Value, convert},
};

pub(super) const ALL: &[Implementation] = &[
    Implementation {
        cmdlet: "Where-Object",
        implemented: &[
            "Property",
            "Value",
            "InputObject",
            "FilterScript",
            "EQ",
            "CEQ",
            "NE",
            "CNE",
            "GT",
            "CGT",
            "LT",
            "CLT",
            "GE",
            "CGE",
            "LE",
            "CLE",
            "Like",
            "CLike",
            "NotLike",
            "CNotLike",
            "Match",
            "CMatch",
            "NotMatch",
            "CNotMatch",
            "Contains",
            "CContains",
            "NotContains",
            "CNotContains",
            "In",
            "CIn",
            "NotIn",
            "CNotIn",
            "Is",
            "IsNot",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Each(where_object),
    },
    Implementation {
        cmdlet: "ForEach-Object",
        implemented: &[
            "Process",
            "InputObject",
            "Begin",
            "End",
            "RemainingScripts",
            "MemberName",
            "ArgumentList",
        ],
        without_effect: &[],
        rejected: &[],
        run: Run::Staged(|| Box::new(ForEach)),
    },
];

fn where_object(call: &mut Call<'_>) -> Outcome {
    let Some(item) = call.input().cloned().or_else(|| call.get("InputObject")) else {
        return Ok(());
    };
    let fits = match call.get("FilterScript") {
        Some(Value::Block(block)) => {
            let mut output = Vec::new();
            call.session.run_here(&block, item.clone(), &mut output)?;
            Value::from_output(output).is_true()
        }
        _ => compared(call, &item)?,
    };
    if fits { call.write(item) } else { Ok(()) }
}

/// `Where-Object State -eq Running`.
fn compared(call: &mut Call<'_>, item: &Value) -> Outcome<bool> {
    let name = call.text("Property").unwrap_or_default();
    let own = property_of(item, &name);
    let Some(wanted) = call.get("Value") else {
        // A property alone is asked whether it is true.
        return Ok(own.is_true());
    };
    for (parameter, operator) in OPERATORS {
        for (spelled, case) in [(parameter.to_owned(), false), (format!("C{parameter}"), true)] {
            if !call.switch(&spelled) {
                continue;
            }
            let result = apply(operator, case, &own, &wanted);
            let (value, _) = result.map_err(|record| call.fail(record))?;
            return Ok(value.is_true());
        }
    }
    for (parameter, negated) in [("Is", false), ("IsNot", true)] {
        if call.switch(parameter) {
            return Ok(crate::eval::is(&own, &convert::to_text(&wanted)) != negated);
        }
    }
    let result = apply(BinaryOp::Equal, false, &own, &wanted);
    Ok(result.map_err(|record| call.fail(record))?.0.is_true())
}

struct ForEach;

impl ForEach {
    fn run(call: &mut Call<'_>, parameter: &str, item: Value) -> Outcome {
        let blocks = call.get(parameter).map(|value| value.each()).unwrap_or_default();
        for block in blocks {
            if let Value::Block(block) = block {
                let Call { session, flow, .. } = call;
                let flow = flow.again();
                session.run_here(&block, item.clone(), &mut Onward(flow))?;
            }
        }
        Ok(())
    }
}

impl Staged for ForEach {
    fn begin(&mut self, call: &mut Call<'_>) -> Outcome {
        ForEach::run(call, "Begin", Value::Null)
    }

    fn process(&mut self, call: &mut Call<'_>) -> Outcome {
        let Some(item) = call.input().cloned().or_else(|| call.get("InputObject")) else {
            return Ok(());
        };
        let Some(member) = call.text("MemberName") else {
            ForEach::run(call, "Process", item.clone())?;
            return ForEach::run(call, "RemainingScripts", item);
        };
        let arguments = call.get("ArgumentList").map(|value| value.each());
        let value = match (own_property(&item, &member), arguments) {
            (Some(value), None) => value,
            (_, arguments) => call.session.method(&item, &member, &arguments.unwrap_or_default())?,
        };
        call.write_all(value.each())
    }

    fn end(&mut self, call: &mut Call<'_>) -> Outcome {
        ForEach::run(call, "End", Value::Null)
    }
}

/// Comparisons by the names of their parameters.
const OPERATORS: [(&str, BinaryOp); 14] = [
    ("EQ", BinaryOp::Equal),
    ("NE", BinaryOp::NotEqual),
    ("GT", BinaryOp::Greater),
    ("GE", BinaryOp::GreaterOrEqual),
    ("LT", BinaryOp::Less),
    ("LE", BinaryOp::LessOrEqual),
    ("Like", BinaryOp::Like),
    ("NotLike", BinaryOp::NotLike),
    ("Match", BinaryOp::Match),
    ("NotMatch", BinaryOp::NotMatch),
    ("Contains", BinaryOp::Contains),
    ("NotContains", BinaryOp::NotContains),
    ("In", BinaryOp::In),
    ("NotIn", BinaryOp::NotIn),
];
