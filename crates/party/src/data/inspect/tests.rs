#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::super::formats_tests::{Folder, bits, types};
use super::super::{ColumnType, Columns, Files, Missing, inspect};

#[test]
fn an_inspection_and_what_it_suggests() {
    use inspect::{Content, Scalar, inspect};
    let folder = Folder::new();
    let mut text = String::from("customer_id,n,flag,grade,when,city,name,ok,empty,one,x\n");
    for row in 0..200 {
        let gap = if row == 7 { String::new() } else { format!("{}.5", row % 50) };
        text += &format!(
            "{row},{row},{},{},2024-01-{:02},c{},p{row},{},,1,{gap}\n",
            row % 2,
            row % 5 + 2,
            row % 28 + 1,
            row % 3,
            if row % 2 == 0 { "yes" } else { "no" },
        );
    }
    let file = folder.write("t.csv", text);
    let files = Files::from(&file);
    let inspection = inspect(&files).unwrap();
    assert_eq!(inspection.rows, 200);
    let contents: Vec<_> = inspection.columns.iter().map(|column| column.content).collect();
    use Content::{Booleans, Dates, Integers, Nothing, Numbers, Text};
    assert_eq!(
        contents,
        [Integers, Integers, Integers, Integers, Dates, Text, Text, Booleans, Nothing, Integers, Numbers]
    );
    let [x, when] = [&inspection.columns[10], &inspection.columns[4]];
    assert_eq!((x.missing, x.distinct, x.distinct_is_exact), (1, 50, true));
    assert_eq!((x.min.clone(), x.max.clone()), (Some(Scalar::Number(0.5)), Some(Scalar::Number(49.5))));
    assert_eq!(when.min, Some(Scalar::Date("2024-01-01".into())));

    let (source, reasons) = inspection.suggest(&files, Some("flag"));
    assert_eq!(source.id, Some(Columns::One("customer_id".into())));
    assert_eq!(source.missing, Missing::Mean);
    use ColumnType::{Boolean, Categorical, Date};
    let expected = [("grade", Categorical), ("when", Date), ("city", Categorical), ("ok", Boolean)];
    assert_eq!(source.types, types(&expected));
    assert_eq!(source.ignore, ["name", "empty", "one"]);
    assert!(source.ignore.iter().all(|name| reasons.contains_key(name)));
    assert!(bits(&source, true).is_ok());
}

#[test]
fn an_inspection_counts_what_it_cannot_remember() {
    let folder = Folder::new();
    let rows: String = (0..100_000).map(|row| format!("{row},{}\n", row % 20_000)).collect();
    let inspection = inspect::inspect(&Files::from(folder.write("t.csv", format!("a,b\n{rows}")))).unwrap();
    for (column, truth) in inspection.columns.iter().zip([100_000.0, 20_000.0]) {
        assert!(!column.distinct_is_exact);
        assert!((column.distinct as f64 / truth - 1.0).abs() < 0.06, "{}", column.distinct);
    }
}
