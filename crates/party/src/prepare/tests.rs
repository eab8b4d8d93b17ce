use super::*;
use crate::data::formats_tests::{Folder, SPEC, types};
use crate::data::{ColumnType, Columns, DataError};
use ndarray::array;

#[test]
fn arranged_rows_are_other_rows_of_the_file() {
    let folder = Folder::new();
    let file = folder.write("t.csv", "id,x,y\na,1,0\nb,2,1\nc,3,0\nd,4,1\n");
    let source = DataSource { id: Some(Columns::One("id".into())), label: Some("y".into()), ..DataSource::new(&file) };
    let mut data = Prepared::read_as(&source, true, true, folder.0.path()).unwrap();
    assert_eq!(data.ids().get(3), "d");
    data.arrange(vec![3, 1, 0]);
    let spec = PreparationSpec { standardize: false, clip: None, ..SPEC };
    data.fit(&spec, &[0, 1]).unwrap();
    let mut x = Array2::zeros((3, 1));
    data.gather(&[2, 0, 1], x.view_mut()).unwrap();
    assert_eq!(x, array![[1.0], [4.0], [2.0]]);
    assert_eq!(data.labels().unwrap(), [1.0, 1.0, 0.0]);
    assert_eq!(data.ids_of(&[0, 2]).collect::<Vec<_>>(), ["d", "a"]);
    let shape = data.shape().unwrap();
    assert_eq!((shape.rows, shape.features), (3, 1));
}

/// A new file lacks the categories, types or columns of training.
#[test]
fn a_prediction_uses_what_was_fitted() {
    let folder = Folder::new();
    let kinds = types(&[("c", ColumnType::Categorical)]);
    let of = |text: &str| {
        let file = folder.write("t.csv", text);
        let source = DataSource { row_numbers_as_ids: true, types: kinds.clone(), ..DataSource::new(&file) };
        Prepared::read_as(&source, false, false, folder.0.path()).unwrap()
    };
    let mut trained = of("x,c\n10,u\n30,v\n");
    trained.fit(&PreparationSpec { clip: None, ..SPEC }, &[0, 1]).unwrap();
    let mut new = of("x,c\n1020,w\n20,v\n");
    new.encode(trained.encoding().unwrap().clone()).unwrap();
    let mut x = Array2::zeros((2, 4));
    new.gather(&[0, 1], x.view_mut()).unwrap();
    assert_eq!(x, array![[100.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]);
    let error = of("c,x\nu,1\n").encode(trained.encoding().unwrap().clone()).unwrap_err();
    assert!(matches!(error, crate::PartyError::Data(DataError::ColumnMismatch { position: 1, .. })), "{error}");
}
