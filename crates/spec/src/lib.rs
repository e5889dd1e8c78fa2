//! What a training request is: modes, fields, rules, plan. Pure data.
