#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;

use ndarray::{Array2, array};

use super::*;
use crate::data::{DataSource, read};

const ALL: PreparationSpec = PreparationSpec { test_fraction: 0.0, standardize: true, clip: None };
const RAW: PreparationSpec = PreparationSpec { standardize: false, ..ALL };

fn table(text: &str, types: &[(&str, ColumnType)], missing: Missing) -> Table {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.csv");
    fs::write(&file, text).unwrap();
    let types: BTreeMap<_, _> = types.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    let source = DataSource { row_numbers_as_ids: true, types, missing, ..DataSource::new(file) };
    read(&source, folder.path()).unwrap()
}

/// A table of numbers with columns a, b, …
fn numbers(values: &Array2<f32>) -> Table {
    let names: Vec<_> = (b'a'..).take(values.ncols()).map(|name| char::from(name).to_string()).collect();
    let row = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|x| x.to_string()).collect::<Vec<_>>().join(",");
    let rows: Vec<_> = values.outer_iter().map(row).collect();
    table(&format!("{}\n{}\n", names.join(","), rows.join("\n")), &[], Missing::Refuse)
}

fn encoded(encoding: &Encoding, table: &Table) -> Array2<f32> {
    let encoder = encoding.encoder(table).unwrap();
    let mut out = Array2::from_elem((table.rows(), encoder.features()), f32::NAN);
    encoder.encode(table, 0..table.rows() as u32, out.view_mut()).unwrap();
    out
}

fn scalings(encoding: &Encoding) -> Vec<Scaling> {
    let of = |column: &Column| match column.encoding {
        ColumnEncoding::Numeric(scaling) | ColumnEncoding::Date(scaling) => Some(scaling),
        _ => None,
    };
    encoding.columns.iter().filter_map(of).collect()
}

fn rows(table: &Table) -> Vec<u32> {
    (0..table.rows() as u32).collect()
}

/// ```python
/// >>> from sklearn.preprocessing import StandardScaler
/// >>> s = StandardScaler().fit([[1, 10], [2, 20], [3, 60]]); s.mean_, s.scale_
/// (array([ 2., 30.]), array([ 0.81649658, 21.60246899]))
/// ```
#[test]
fn known_numbers() {
    let table = numbers(&array![[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]]);
    let encoding = Encoding::fit(&table, &[0, 1, 2], &ALL).unwrap();
    let [a, b] = scalings(&encoding)[..] else { unreachable!() };
    assert_eq!([a.mean, b.mean], [2.0, 30.0]);
    assert!((a.scale - 0.816_496_58).abs() < 1e-8);
    assert!((b.scale - 21.602_468_99).abs() < 1e-8);
    let expected = array![[-1.224_744_9, -0.925_820_1], [0.0, -0.462_910_05], [1.224_744_9, 1.388_730_2]];
    assert!((encoded(&encoding, &table) - &expected).iter().all(|x: &f32| x.abs() < 1e-6));
}

#[test]
fn only_training_rows_count() {
    let all = numbers(&array![[1.0], [1e6], [3.0], [-1e6]]);
    let training = numbers(&array![[1.0], [3.0]]);
    let on_some = Encoding::fit(&all, &[0, 2], &ALL).unwrap();
    assert!(on_some == Encoding::fit(&training, &[0, 1], &ALL).unwrap());
    assert_eq!(encoded(&on_some, &all), array![[-1.0], [999_998.0], [1.0], [-1_000_002.0]]);

    let kinds = [("c", ColumnType::Categorical)];
    let all = table("c\nblue\nred\nblue\ngreen\n", &kinds, Missing::Refuse);
    let encoding = Encoding::fit(&all, &[0, 1], &ALL).unwrap();
    // blue, red, any other.
    let expected = array![[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]];
    assert_eq!(encoded(&encoding, &all), expected);
    // In another file the values have other codes, and there are others.
    let new = table("c\nviolet\ngreen\nred\n", &kinds, Missing::Refuse);
    assert_eq!(encoded(&encoding, &new), array![[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]);
}

#[test]
fn a_constant_column_becomes_zero() {
    let table = numbers(&Array2::from_elem((100_003, 1), 0.1_f32));
    let encoding = Encoding::fit(&table, &rows(&table), &ALL).unwrap();
    assert_eq!(scalings(&encoding)[0].scale, 1.0);
    assert!(encoded(&encoding, &table).iter().all(|&x| x == 0.0));
}

#[test]
fn a_large_mean_does_not_swallow_the_variance() {
    let table = numbers(&array![[16_000_000.0], [16_000_001.0]]);
    let Scaling { mean, scale, .. } = scalings(&Encoding::fit(&table, &[0, 1], &ALL).unwrap())[0];
    assert_eq!((mean, scale), (16_000_000.5, 0.5));
}

#[test]
fn clips_after_scaling() {
    let table = numbers(&array![[0.0], [2.0], [100.0], [-100.0], [3.0]]);
    let clipped = |spec| encoded(&Encoding::fit(&table, &[0, 1], &spec).unwrap(), &table);
    let spec = PreparationSpec { clip: Some(5.0), ..ALL };
    assert_eq!(clipped(spec), array![[-1.0], [1.0], [5.0], [-5.0], [2.0]]);
    let spec = PreparationSpec { clip: Some(5.0), ..RAW };
    assert_eq!(clipped(spec), array![[0.0], [2.0], [5.0], [-5.0], [3.0]]);
}

#[test]
fn finite_stays_finite_without_a_clip() {
    let table = numbers(&array![[0.0], [1e-44], [f32::MAX]]);
    let encoding = Encoding::fit(&table, &[0, 1], &ALL).unwrap();
    assert!(encoded(&encoding, &table).iter().all(|x| x.is_finite()));
}

#[test]
fn every_type_has_its_features() {
    let kinds = [
        ("b", ColumnType::Boolean),
        ("c", ColumnType::Categorical),
        ("d", ColumnType::Date),
        ("h", ColumnType::Hashed(4)),
    ];
    let table = table(
        "x,b,c,y,d,h\n1,yes,k,-4,1970-01-02,shop\n2,no,a,4,1970-01-04,bank\n3,T,k,0,1970-01-03,shop\n",
        &kinds,
        Missing::Refuse,
    );
    let encoding = Encoding::fit(&table, &rows(&table), &RAW).unwrap();
    let out = encoded(&encoding, &table);
    assert_eq!(out.ncols(), 1 + 1 + 3 + 1 + 1 + 4);
    assert_eq!(
        out.slice(ndarray::s![.., ..7]),
        array![
            [1.0, 1.0, 0.0, 1.0, 0.0, -4.0, 1.0],
            [2.0, 0.0, 1.0, 0.0, 0.0, 4.0, 3.0],
            [3.0, 1.0, 0.0, 1.0, 0.0, 0.0, 2.0]
        ]
    );
    let buckets = out.slice(ndarray::s![.., 7..]);
    assert!(buckets.outer_iter().all(|row| row.sum() == 1.0 && row.iter().all(|x| [0.0, 1.0].contains(x))));
    assert_eq!(buckets.row(0), buckets.row(2));

    // Only numbers and dates are scaled, and clipped.
    let spec = PreparationSpec { clip: Some(0.5), ..ALL };
    let scaled = encoded(&Encoding::fit(&table, &rows(&table), &spec).unwrap(), &table);
    assert_eq!(scaled.slice(ndarray::s![.., 1..5]), out.slice(ndarray::s![.., 1..5]));
    assert_eq!(scaled.slice(ndarray::s![.., 7..]), buckets);
    assert_eq!(scaled.column(6), array![-0.5, 0.5, 0.0]);
}

/// ```python
/// >>> import hashlib
/// >>> digest = hashlib.sha256((4).to_bytes(8, "little") + b"shop" + b"corner").digest()
/// >>> int.from_bytes(digest[:8], "little") % 1000
/// 767
/// ```
#[test]
fn a_bucket_is_the_same_everywhere() {
    let table = table("shop\ncorner\n", &[("shop", ColumnType::Hashed(1000))], Missing::Refuse);
    let out = encoded(&Encoding::fit(&table, &[0], &ALL).unwrap(), &table);
    assert_eq!(out.iter().position(|&x| x == 1.0), Some(767));
}

#[test]
fn missing_values() {
    let kinds = [("b", ColumnType::Boolean), ("c", ColumnType::Categorical), ("h", ColumnType::Hashed(3))];
    let text = "x,b,c,h\n1,1,k,k\n,,,\n3,0,k,k\n100,NA,?,null\n";
    let all = table(text, &kinds, Missing::Mean);
    // The mean of the training rows, without the one that has no value and without the test row.
    let out = encoded(&Encoding::fit(&all, &[0, 1, 2], &RAW).unwrap(), &all);
    assert_eq!(out.column(0), array![1.0, 2.0, 3.0, 100.0]);
    assert_eq!(out.slice(ndarray::s![.., 1..3]), array![[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]);
    // No value is a category like any other: first, k, any other.
    let no = [1.0, 0.0, 0.0];
    assert_eq!(out.slice(ndarray::s![.., 3..6]), array![[0.0, 1.0, 0.0], no, [0.0, 1.0, 0.0], no]);
    assert_eq!(out.slice(ndarray::s![.., 6..]).sum_axis(ndarray::Axis(1)), array![1.0, 1.0, 1.0, 1.0]);

    let standardized = encoded(&Encoding::fit(&all, &[0, 1, 2], &ALL).unwrap(), &all);
    assert_eq!(standardized.column(0).slice(ndarray::s![..3]), array![-1.0, 0.0, 1.0]);

    // Where no training row lacks a value, one that does has another value than all.
    let out = encoded(&Encoding::fit(&all, &[0, 2], &RAW).unwrap(), &all);
    assert_eq!(out.slice(ndarray::s![.., 3..5]), array![[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]);

    let error = Encoding::fit(&all, &[1], &ALL).unwrap_err();
    assert!(matches!(&error, DataError::NoValues { column } if column == "x"), "{error:?}");
}

#[test]
fn other_tables_are_refused() {
    let make = |header: &str, kinds: &[(&str, ColumnType)], missing| {
        let values = vec!["1"; header.split(',').count()].join(",");
        table(&format!("{header}\n{values}\n"), kinds, missing)
    };
    let encoding = Encoding::fit(&make("age,income", &[], Missing::Refuse), &[0], &ALL).unwrap();
    encoding.encoder(&make("age,income", &[], Missing::Refuse)).unwrap();
    let text = |header, kinds: &[(&str, ColumnType)], missing| {
        encoding.encoder(&make(header, kinds, missing)).map(drop).unwrap_err().to_string()
    };
    let refuse = Missing::Refuse;
    assert!(text("income,age", &[], refuse).starts_with("feature column 1 is `income` where `age` is expected"));
    assert!(text("age", &[], refuse).starts_with("feature column 2 is `(none)` where `income` is expected"));
    assert!(text("age,income,x", &[], refuse).starts_with("feature column 3 is `x` where `(none)` is expected"));
    let hashed = text("age,income", &[("income", ColumnType::Hashed(8))], refuse);
    assert!(hashed.starts_with("column `income` has the type { hashed = 8 }, and had the type numeric in"), "{hashed}");
    let missing = text("age,income", &[], Missing::Mean);
    assert!(missing.starts_with("`missing` is \"mean\", and was \"refuse\" in training"), "{missing}");
}

#[test]
fn survives_storage_and_refuses_what_cannot_be_one() {
    let kinds = [
        ("b", ColumnType::Boolean),
        ("c", ColumnType::Categorical),
        ("d", ColumnType::Date),
        ("h", ColumnType::Hashed(4)),
    ];
    let table = table("a,b,c,d,h\n0.1,1,x,2020-01-01,m\n0.7,0,,2020-01-07,m\n", &kinds, Missing::Mean);
    let encoding = Encoding::fit(&table, &[0, 1], &PreparationSpec { clip: Some(5.0), ..ALL }).unwrap();
    let stored = serde_json::to_string(&encoding).unwrap();
    assert!(serde_json::from_str::<Encoding>(&stored).unwrap() == encoding, "{stored}");

    let numeric = |scaling: &str| {
        format!(r#"{{"columns":[{{"name":"a","encoding":{{"numeric":{scaling}}}}}],"missing":"refuse"}}"#)
    };
    for (json, problem) in [
        (numeric(r#"{"mean":0,"scale":0,"fill":0}"#), "scale"),
        (numeric(r#"{"mean":0,"scale":1}"#), "fill"),
        (numeric(r#"{"mean":0,"scale":1,"fill":0,"surplus":1}"#), "surplus"),
        (r#"{"columns":[],"clip":-1,"missing":"mean"}"#.into(), "clip"),
        (r#"{"columns":[{"name":"a","encoding":{"categorical":["b","a"]}}],"missing":"mean"}"#.into(), "order"),
        (r#"{"columns":[{"name":"a","encoding":{"hashed":1}}],"missing":"mean"}"#.into(), "buckets"),
    ] {
        let error = serde_json::from_str::<Encoding>(&json).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn debug_shows_no_statistics() {
    let encoding = Encoding::fit(&numbers(&array![[42.0]]), &[0], &ALL).unwrap();
    assert_eq!(format!("{encoding:?}"), "Encoding { columns: 1, clip: None, missing: Refuse, .. }");
}
