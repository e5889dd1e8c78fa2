//! The one convolution loop: channels last, any of three axes, no im2col.
//!
//! x `[B, A0, A1, A2, I]` and w `[O, I, k0, k1, k2]` give y `[B, A0', A1', A2', O]`,
//! `y[p, o] = bias[o] + Σ_tap Σ_i x[source(p, tap), i] · w[o, i, tap]`.
//!
//! The product over positions × channels is blocked as in a matrix product, but the left matrix
//! is never written down: a tap of an output position is the address of an input row, or of a row
//! of zeros. Padding and stride are therefore nothing but address arithmetic, and the
//! scratch is one block per thread (under 1 MB), however long the clip.
//!
//! Absent on purpose: groups, gradients with respect to the weights (they are frozen).

use half::bf16;
use rayon::prelude::*;

/// Output channels per weight panel: two AVX registers.
const PANEL: usize = 16;
/// Output positions per micro-tile: with [`PANEL`], 12 of the 16 AVX registers accumulate.
const ROWS: usize = 6;
/// Terms per block: a panel of 256 × 16 f32 is half of a 32 KiB L1 cache.
const BLOCK_TERMS: usize = 256;
/// Output positions per task, a multiple of [`ROWS`]: with `BLOCK_TERMS`, half of a 512 KiB L2 cache.
const TASK_ROWS: usize = 240;
/// Marks a tap that falls into zero padding.
const ZERO_ROW: usize = usize::MAX;

/// What stands outside an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Zeros.
    Zeros,
    /// The edge value, repeated.
    Replicate,
    /// The values mirrored at the edge, which itself is not repeated.
    Reflect,
}

/// One axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// Input length.
    pub(super) size: usize,
    /// Taps.
    pub(super) kernel: usize,
    /// Step between two outputs.
    pub(super) stride: usize,
    /// Positions added before and after.
    pub(super) pad: (usize, usize),
    /// What the added positions hold.
    pub(super) padding: Padding,
}

impl Axis {
    /// Output length, or what is wrong with the axis.
    pub(super) fn output(&self) -> Result<usize, String> {
        let Self { size, kernel, stride, pad, padding } = *self;
        if size == 0 || kernel == 0 || stride == 0 {
            return Err(format!("size, kernel and stride must be positive: {self:?}"));
        }
        if padding == Padding::Reflect && pad.0.max(pad.1) >= size {
            return Err(format!("reflection by {} needs a longer axis than {size}", pad.0.max(pad.1)));
        }
        let padded = size + pad.0 + pad.1;
        if padded < kernel {
            return Err(format!("a kernel of {kernel} does not fit an axis of {padded} with padding"));
        }
        Ok((padded - kernel) / stride + 1)
    }

    /// Input positions `[output, tap]`.
    fn sources(&self, outputs: usize) -> Vec<Option<usize>> {
        (0..outputs).flat_map(|at| (0..self.kernel).map(move |tap| self.source(at, tap))).collect()
    }

    /// Input position under `tap` of output `at`; `None` is zero padding.
    fn source(&self, at: usize, tap: usize) -> Option<usize> {
        let padded = at * self.stride + tap;
        let last = self.size - 1;
        match padded.checked_sub(self.pad.0) {
            Some(inside) if inside <= last => Some(inside),
            Some(beyond) => match self.padding {
                Padding::Zeros => None,
                Padding::Replicate => Some(last),
                Padding::Reflect => Some(2 * last - beyond),
            },
            None => match self.padding {
                Padding::Zeros => None,
                Padding::Replicate => Some(0),
                Padding::Reflect => Some(self.pad.0 - padded),
            },
        }
    }
}

/// Terms that are multiplied together in one go: some whole taps, or some channels of one tap.
#[derive(Clone, Debug)]
struct Block {
    first_tap: usize,
    taps: usize,
    first_channel: usize,
    channels: usize,
    /// Terms before this block in a panel.
    start: usize,
}

impl Block {
    fn terms(&self) -> usize {
        self.taps * self.channels
    }
}

fn blocks(taps: usize, channels: usize) -> Vec<Block> {
    let mut list = Vec::new();
    let mut start = 0;
    let mut push = |first_tap, taps, first_channel, channels| {
        list.push(Block { first_tap, taps, first_channel, channels, start });
        start += taps * channels;
    };
    if channels > BLOCK_TERMS {
        for tap in 0..taps {
            for first in (0..channels).step_by(BLOCK_TERMS) {
                push(tap, 1, first, BLOCK_TERMS.min(channels - first));
            }
        }
    } else {
        let step = BLOCK_TERMS / channels;
        for tap in (0..taps).step_by(step) {
            push(tap, step.min(taps - tap), 0, channels);
        }
    }
    list
}

/// Values as the checkpoint stores them; bf16 is widened, which loses nothing.
pub(super) enum Values<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bf16.
    Bf16(&'a [bf16]),
}

#[derive(Clone)]
enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// A convolution's weight, rearranged for the loop: panels of 16 output channels, term by term.
#[derive(Clone)]
pub(super) struct ConvWeight {
    outputs: usize,
    channels: usize,
    kernel: [usize; 3],
    blocks: Vec<Block>,
    stored: Stored,
}

impl std::fmt::Debug for ConvWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConvWeight({}, {}, {:?})", self.outputs, self.channels, self.kernel)
    }
}

impl ConvWeight {
    /// Rearranges `[O, I, k0, k1, k2]`, row-major.
    ///
    /// # Errors
    /// A size of zero, or a number of values that is not the product of the shape.
    pub(super) fn new(values: &Values<'_>, shape: [usize; 5]) -> Result<Self, String> {
        let [outputs, channels, k0, k1, k2] = shape;
        let taps = k0 * k1 * k2;
        let count = match values {
            Values::F32(v) => v.len(),
            Values::Bf16(v) => v.len(),
        };
        if count == 0 || count != shape.iter().product::<usize>() {
            return Err(format!("{count} values are no weight of shape {shape:?}"));
        }
        let blocks = blocks(taps, channels);
        let stored = match values {
            Values::F32(v) => Stored::F32(pack(v, outputs, channels, taps, &blocks)),
            Values::Bf16(v) => Stored::Bf16(pack(v, outputs, channels, taps, &blocks)),
        };
        Ok(Self { outputs, channels, kernel: [k0, k1, k2], blocks, stored })
    }

    /// Output channels.
    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Taps per axis.
    pub(super) fn kernel(&self) -> [usize; 3] {
        self.kernel
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        match &self.stored {
            Stored::F32(v) => size_of_val(v.as_slice()),
            Stored::Bf16(v) => size_of_val(v.as_slice()),
        }
    }

    fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// One block of one panel, `[terms, 16]`; bf16 goes through `scratch`.
    fn panel<'a>(&'a self, panel: usize, block: &Block, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let terms = self.channels * self.kernel.iter().product::<usize>();
        let start = (panel * terms + block.start) * PANEL;
        let range = start..start + block.terms() * PANEL;
        match &self.stored {
            Stored::F32(v) => &v[range],
            Stored::Bf16(v) => {
                scratch.clear();
                scratch.extend(v[range].iter().map(|b| f32::from_bits(u32::from(b.to_bits()) << 16)));
                scratch
            }
        }
    }
}

/// `[O, I, taps]` to `[panel, block, tap, channel, 16]`; missing output channels are zero.
fn pack<T: Copy + Default + Send + Sync>(
    values: &[T],
    outputs: usize,
    channels: usize,
    taps: usize,
    blocks: &[Block],
) -> Vec<T> {
    let terms = channels * taps;
    let mut packed = vec![T::default(); outputs.div_ceil(PANEL) * terms * PANEL];
    packed.par_chunks_mut(terms * PANEL).enumerate().for_each(|(panel, into)| {
        let first = panel * PANEL;
        let lanes = PANEL.min(outputs - first);
        for block in blocks {
            for c in 0..block.channels {
                for t in 0..block.taps {
                    let term = block.start + t * block.channels + c;
                    let from = (block.first_channel + c) * taps + block.first_tap + t;
                    let to = &mut into[term * PANEL..][..lanes];
                    for (lane, value) in to.iter_mut().enumerate() {
                        *value = values[(first + lane) * terms + from];
                    }
                }
            }
        }
    });
    packed
}

/// One convolution: geometry, weight and what is added.
#[derive(Debug)]
pub(super) struct Conv<'a> {
    /// Samples.
    pub(super) batch: usize,
    /// The three axes; their kernels are those of the weight.
    pub(super) axes: [Axis; 3],
    /// Rearranged weight.
    pub(super) weight: &'a ConvWeight,
    /// `[O]`.
    pub(super) bias: Option<&'a [f32]>,
    /// `[B, A0', A1', A2', O]`, added to the result.
    pub(super) residual: Option<&'a [f32]>,
}

impl Conv<'_> {
    /// Output lengths of the three axes.
    ///
    /// # Errors
    /// Names the axis that does not fit.
    pub(super) fn output(&self) -> Result<[usize; 3], String> {
        let mut sizes = [0; 3];
        for (i, axis) in self.axes.iter().enumerate() {
            sizes[i] = axis.output().map_err(|e| format!("axis {i}: {e}"))?;
        }
        Ok(sizes)
    }

    /// Runs over x `[B, A0, A1, A2, I]`, row-major; gives `[B, A0', A1', A2', O]`.
    ///
    /// # Errors
    /// Says which size does not fit the others.
    pub(super) fn run(&self, x: &[f32]) -> Result<Vec<f32>, String> {
        let sizes = self.output()?;
        let weight = self.weight;
        if self.axes.map(|a| a.kernel) != weight.kernel {
            return Err(format!(
                "kernel {:?} of the axes is not the weight's {:?}",
                self.axes.map(|a| a.kernel),
                weight.kernel
            ));
        }
        let inputs = self.batch * self.axes.iter().map(|a| a.size).product::<usize>() * weight.channels;
        let rows = self.batch * sizes.iter().product::<usize>();
        let count = rows * weight.outputs;
        if x.len() != inputs {
            return Err(format!("{} input values, {inputs} expected", x.len()));
        }
        if self.bias.is_some_and(|b| b.len() != weight.outputs) {
            return Err(format!("the bias does not have the weight's {} output channels", weight.outputs));
        }
        if self.residual.is_some_and(|r| r.len() != count) {
            return Err(format!("the residual does not have the output's {count} values"));
        }
        let mut out = vec![0f32; count];
        let zeros = vec![0f32; weight.channels];
        let pass = Pass {
            conv: self,
            sizes,
            from: std::array::from_fn(|i| self.axes[i].sources(sizes[i])),
            rows,
            x,
            zeros: &zeros,
            out: OutPtr(out.as_mut_ptr()),
            micro: micro_kernel(),
        };
        pass.tasks()
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, task| pass.task(&task, scratch));
        Ok(out)
    }
}

/// A rectangle of the output: positions × panels.
struct Task {
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

/// Per-thread memory.
#[derive(Default)]
struct Scratch {
    /// Start of the input row per `[tap, row]`, or [`ZERO_ROW`].
    sources: Vec<usize>,
    /// Input rows of the block, copied when only some of the channels are in it.
    copied: Vec<f32>,
    /// Input row addresses per `[tile, tap]`.
    addresses: Vec<[*const f32; ROWS]>,
    widened: Vec<f32>,
}

/// The output, written by several threads in disjoint rectangles.
struct OutPtr(*mut f32);

#[expect(unsafe_code, reason = "threads write disjoint rectangles of one output")]
// SAFETY: the pointer is only used inside `Pass::task`, whose rectangles do not overlap, while `run` keeps the vector alive.
unsafe impl Sync for OutPtr {}

struct Pass<'a> {
    conv: &'a Conv<'a>,
    sizes: [usize; 3],
    /// Per axis `[output, tap]`: the input position, or `None` for a zero.
    from: [Vec<Option<usize>>; 3],
    rows: usize,
    x: &'a [f32],
    zeros: &'a [f32],
    out: OutPtr,
    micro: MicroKernel,
}

impl Pass<'_> {
    /// Cuts the output so that every thread has several tasks; positions first, panels when there are few positions.
    fn tasks(&self) -> Vec<Task> {
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let panels = self.conv.weight.panels();
        let row_blocks = self.rows.div_ceil(TASK_ROWS);
        let rows_each = self.rows.div_ceil(row_blocks).next_multiple_of(ROWS);
        let panel_blocks = wanted.div_ceil(row_blocks).min(panels);
        let panels_each = panels.div_ceil(panel_blocks);
        // panels outside: threads that run side by side share a piece of the weight
        let mut tasks = Vec::new();
        for first_panel in (0..panels).step_by(panels_each) {
            for first_row in (0..self.rows).step_by(rows_each) {
                tasks.push(Task {
                    rows: first_row..self.rows.min(first_row + rows_each),
                    panels: first_panel..panels.min(first_panel + panels_each),
                });
            }
        }
        tasks
    }

    fn task(&self, task: &Task, scratch: &mut Scratch) {
        let weight = self.conv.weight;
        self.begin(task);
        self.find_sources(task, &mut scratch.sources);
        let tiles = task.rows.len().div_ceil(ROWS);
        for block in &weight.blocks {
            self.find_addresses(block, tiles, scratch);
            for panel in task.panels.clone() {
                let terms = weight.panel(panel, block, &mut scratch.widened);
                for tile in 0..tiles {
                    let row = task.rows.start + tile * ROWS;
                    let rows = ROWS.min(task.rows.end - row);
                    let lanes = PANEL.min(weight.outputs - panel * PANEL);
                    let addresses = &scratch.addresses[tile * block.taps..][..block.taps];
                    self.tile(
                        addresses,
                        block.channels,
                        terms,
                        row * weight.outputs + panel * PANEL,
                        rows,
                        lanes,
                    );
                }
            }
        }
    }

    /// Output = bias + residual in the task's rectangle.
    fn begin(&self, task: &Task) {
        let outputs = self.conv.weight.outputs;
        let first = task.panels.start * PANEL;
        let last = outputs.min(task.panels.end * PANEL);
        for row in task.rows.clone() {
            let at = row * outputs + first;
            #[expect(unsafe_code, reason = "a row of this task's rectangle")]
            // SAFETY: `row` < rows and `last` <= outputs, so the slice lies in the output; no other task has this rectangle.
            let into = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), last - first) };
            if let Some(bias) = self.conv.bias {
                into.copy_from_slice(&bias[first..last]);
            }
            if let Some(residual) = self.conv.residual {
                for (o, r) in into.iter_mut().zip(&residual[at..]) {
                    *o += r;
                }
            }
        }
    }

    /// Fills `[tap, row]` with the offset of the input row; rows are padded to whole tiles with zero rows.
    fn find_sources(&self, task: &Task, sources: &mut Vec<usize>) {
        let [a0, a1, a2] = self.conv.axes;
        let [n0, n1, n2] = self.sizes;
        let [from0, from1, from2] = &self.from;
        let channels = self.conv.weight.channels;
        let padded = task.rows.len().next_multiple_of(ROWS);
        sources.clear();
        sources.resize(a0.kernel * a1.kernel * a2.kernel * padded, ZERO_ROW);
        let mut row = task.rows.start;
        while row < task.rows.end {
            // Outputs of one line differ on the last axis only.
            let (line, p2) = (row / n2, row % n2);
            let (rest, p1) = (line / n1, line % n1);
            let (sample, p0) = (rest / n0, rest % n0);
            let count = (n2 - p2).min(task.rows.end - row);
            let at = row - task.rows.start;
            let mut planes = sources.chunks_exact_mut(padded);
            for s0 in &from0[p0 * a0.kernel..][..a0.kernel] {
                for s1 in &from1[p1 * a1.kernel..][..a1.kernel] {
                    let start = ((sample * a0.size + s0.unwrap_or(0)) * a1.size + s1.unwrap_or(0)) * a2.size;
                    for tap in 0..a2.kernel {
                        let plane = planes.next().expect("invariant: one plane per tap");
                        if s0.is_none() || s1.is_none() {
                            continue;
                        }
                        let line = from2[p2 * a2.kernel..].chunks_exact(a2.kernel);
                        for (into, taps) in plane[at..at + count].iter_mut().zip(line) {
                            if let Some(s2) = taps[tap] {
                                *into = (start + s2) * channels;
                            }
                        }
                    }
                }
            }
            row += count;
        }
    }

    /// Fills `[tile, tap]` with the addresses of the block's input rows.
    fn find_addresses(&self, block: &Block, tiles: usize, scratch: &mut Scratch) {
        let Scratch { sources, copied, addresses, .. } = scratch;
        let padded = tiles * ROWS;
        addresses.clear();
        let row = |source: usize| match source {
            ZERO_ROW => &self.zeros[..block.channels],
            at => &self.x[at + block.first_channel..][..block.channels],
        };
        if block.channels < self.conv.weight.channels {
            // Slices of wide rows lie a power of two apart and would compete for the same cache sets.
            copied.clear();
            for &source in &sources[block.first_tap * padded..][..padded] {
                copied.extend_from_slice(row(source));
            }
            addresses.extend(
                (0..tiles).map(|tile| {
                    std::array::from_fn(|r| copied[(tile * ROWS + r) * block.channels..].as_ptr())
                }),
            );
        } else {
            for tile in 0..tiles {
                for tap in block.first_tap..block.first_tap + block.taps {
                    let at = tap * padded + tile * ROWS;
                    addresses.push(std::array::from_fn(|r| row(sources[at + r]).as_ptr()));
                }
            }
        }
    }

    /// Adds one block's terms to up to 6 × 16 outputs at offset `at`.
    fn tile(
        &self,
        rows_at: &[[*const f32; ROWS]],
        channels: usize,
        terms: &[f32],
        at: usize,
        rows: usize,
        lanes: usize,
    ) {
        let outputs = self.conv.weight.outputs;
        assert!(
            terms.len() == rows_at.len() * channels * PANEL,
            "invariant: a panel holds the block's terms"
        );
        #[expect(unsafe_code, reason = "the micro-kernel works on addresses")]
        // SAFETY: every address in `rows_at` heads a slice of `channels` values (taken as such in `find_addresses`);
        // `terms` holds as many rows of 16 (asserted); rows × lanes at `at` lie in this task's rectangle of the output,
        // and where the tile is cut short a full-size buffer stands in. The kernel was chosen for this processor.
        unsafe {
            let out = self.out.0.add(at);
            if rows == ROWS && lanes == PANEL {
                (self.micro)(rows_at, channels, terms.as_ptr(), out, outputs);
            } else {
                let mut whole = [0f32; ROWS * PANEL];
                (self.micro)(rows_at, channels, terms.as_ptr(), whole.as_mut_ptr(), PANEL);
                for r in 0..rows {
                    let into = std::slice::from_raw_parts_mut(out.add(r * outputs), lanes);
                    for (o, v) in into.iter_mut().zip(&whole[r * PANEL..]) {
                        *o += v;
                    }
                }
            }
        }
    }
}

/// `out[r, 0..16] += Σ_tap Σ_c rows[tap][r][c] · terms[tap, c, 0..16]`, output rows `stride` apart.
type MicroKernel = unsafe fn(&[[*const f32; ROWS]], usize, *const f32, *mut f32, usize);

fn micro_kernel() -> MicroKernel {
    #[cfg(target_arch = "x86_64")]
    if crate::simd::wide() {
        return micro_avx2;
    }
    micro_plain
}

#[expect(unsafe_code, reason = "the caller vouches for the addresses")]
unsafe fn micro_plain(
    rows: &[[*const f32; ROWS]],
    channels: usize,
    terms: *const f32,
    out: *mut f32,
    stride: usize,
) {
    let mut sums = [[0f32; PANEL]; ROWS];
    for (tap, addresses) in rows.iter().enumerate() {
        for c in 0..channels {
            // SAFETY: see `Pass::tile`: `terms` holds taps × channels rows of 16, each address `channels` values.
            let (term, values) = unsafe {
                let term = &*terms.add((tap * channels + c) * PANEL).cast::<[f32; PANEL]>();
                (term, addresses.map(|a| *a.add(c)))
            };
            for (sum, value) in sums.iter_mut().zip(values) {
                for (s, t) in sum.iter_mut().zip(term) {
                    *s += value * t;
                }
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        // SAFETY: see `Pass::tile`: six rows of 16 outputs, `stride` apart.
        let into = unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), PANEL) };
        for (o, s) in into.iter_mut().zip(sum) {
            *o += s;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "the caller vouches for the addresses")]
unsafe fn micro_avx2(
    rows: &[[*const f32; ROWS]],
    channels: usize,
    terms: *const f32,
    out: *mut f32,
    stride: usize,
) {
    use std::arch::x86_64::{
        _mm_load_ss, _mm256_add_ps, _mm256_broadcastss_ps, _mm256_castsi256_ps, _mm256_fmadd_ps,
        _mm256_lddqu_si256, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    // In builds with debug assertions `add`, `&*` and `_mm256_loadu_ps` carry checks that push the sums out of the
    // registers: three times slower. What stands here instead carries none.
    let mut low = [_mm256_setzero_ps(); ROWS];
    let mut high = [_mm256_setzero_ps(); ROWS];
    let mut term = terms;
    for addresses in rows {
        let mut c = 0;
        while c != channels {
            // SAFETY: see `Pass::tile`: `terms` holds taps × channels rows of 16, each address `channels` values.
            unsafe {
                let l = _mm256_castsi256_ps(_mm256_lddqu_si256(term.cast()));
                let h = _mm256_castsi256_ps(_mm256_lddqu_si256(term.wrapping_add(8).cast()));
                for r in 0..ROWS {
                    let value = _mm256_broadcastss_ps(_mm_load_ss(addresses[r].wrapping_add(c)));
                    low[r] = _mm256_fmadd_ps(value, l, low[r]);
                    high[r] = _mm256_fmadd_ps(value, h, high[r]);
                }
            }
            term = term.wrapping_add(PANEL);
            c = c.wrapping_add(1);
        }
    }
    for r in 0..ROWS {
        // SAFETY: see `Pass::tile`: six rows of 16 outputs, `stride` apart.
        unsafe {
            let into = out.add(r * stride);
            _mm256_storeu_ps(into, _mm256_add_ps(_mm256_loadu_ps(into), low[r]));
            _mm256_storeu_ps(into.add(8), _mm256_add_ps(_mm256_loadu_ps(into.add(8)), high[r]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_kernel_adds_what_the_plain_one_adds() {
        let values = |seed: u32, count: usize| -> Vec<f32> {
            (0..count as u32)
                .map(|i| {
                    ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) % 2_003) as f32 / 1_001.5 - 1.0
                })
                .collect()
        };
        for (taps, channels) in [(1, 1), (2, 7), (3, 64)] {
            let rows: Vec<Vec<f32>> = (0..taps * ROWS).map(|i| values(i as u32, channels)).collect();
            let addresses: Vec<[*const f32; ROWS]> =
                rows.chunks(ROWS).map(|rows| std::array::from_fn(|r| rows[r].as_ptr())).collect();
            let terms = values(99, taps * channels * PANEL);
            let stride = PANEL + 3;
            let mut results = [values(5, ROWS * stride), values(5, ROWS * stride)];
            for (kernel, result) in [micro_plain as MicroKernel, micro_kernel()].into_iter().zip(&mut results)
            {
                #[expect(unsafe_code, reason = "the micro-kernels work on addresses")]
                // SAFETY: `addresses`, `terms` and `result` have the sizes `Pass::tile` vouches for.
                unsafe {
                    kernel(&addresses, channels, terms.as_ptr(), result.as_mut_ptr(), stride);
                }
            }
            let start = values(5, ROWS * stride);
            for (at, (plain, chosen)) in results[0].iter().zip(&results[1]).enumerate() {
                assert!((plain - chosen).abs() < 1e-4, "{taps} × {channels} at {at}: {chosen} for {plain}");
                assert_eq!(at % stride < PANEL, plain.to_bits() != start[at].to_bits(), "value {at}");
            }
        }
    }

    #[test]
    fn blocks_cover_every_term_once() {
        for (taps, channels) in [(1, 1), (27, 3), (27, 128), (27, 256), (27, 300), (9, 1024), (5, 257)] {
            let mut next = 0;
            let mut seen = vec![0; taps * channels];
            for block in blocks(taps, channels) {
                assert_eq!(block.start, next);
                assert!(block.terms() <= BLOCK_TERMS);
                next += block.terms();
                for tap in block.first_tap..block.first_tap + block.taps {
                    for channel in block.first_channel..block.first_channel + block.channels {
                        seen[tap * channels + channel] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|times| *times == 1), "{taps} × {channels}");
        }
    }
}
