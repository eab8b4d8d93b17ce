//! A list that grows to an unknown length without being there twice.

/// Values of which nobody knows for certain how many will come. One growing list would be copied again and again, and for
/// a moment be there twice: where the number can be estimated there is one list with room for all of them and a few more,
/// which take no memory until they are there; where it cannot, there are segments.
pub(super) struct Growing<T> {
    full: Vec<Vec<T>>,
    last: Vec<T>,
    is_whole: bool,
}

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Self { full: Vec::new(), last: Vec::new(), is_whole: false }
    }
}

impl<T: Copy> Growing<T> {
    /// Values of a segment: 16 MB; few in tests, where tables are small.
    const SEGMENT: usize = if cfg!(test) { 64 } else { 4 << 20 };

    /// Makes room for `all` values, unless there is no room or there are many already.
    pub(super) fn reserve(&mut self, all: usize) {
        let more = all.saturating_sub(self.last.len());
        self.is_whole = self.full.is_empty() && self.last.try_reserve_exact(more).is_ok();
    }

    pub(super) fn extend(&mut self, mut values: &[T]) {
        while !self.is_whole && values.len() > Self::SEGMENT - self.last.len() {
            let (fits, rest) = values.split_at(Self::SEGMENT - self.last.len());
            self.last.extend_from_slice(fits);
            self.full.push(std::mem::take(&mut self.last));
            self.last.reserve_exact(Self::SEGMENT);
            values = rest;
        }
        self.last.extend_from_slice(values);
    }

    pub(super) fn push(&mut self, value: T) {
        self.extend(&[value]);
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = &[T]> {
        self.full.iter().chain([&self.last]).map(Vec::as_slice)
    }

    /// All values; each segment is given back as soon as it is copied.
    pub(super) fn into_vec(self) -> Vec<T> {
        let Self { full, last, .. } = self;
        if full.is_empty() {
            return last;
        }
        let mut all = Vec::with_capacity(full.len() * Self::SEGMENT + last.len());
        full.into_iter().chain([last]).for_each(|segment| all.extend_from_slice(&segment));
        all
    }
}
