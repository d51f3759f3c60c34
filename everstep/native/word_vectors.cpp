// Word vectors, learned word by word (Mikolov 2013): of a word w with vector h, or of the mean h of several, and a target
// t, the loss is −log σ(u_t h) − Σ_k log σ(−u_k h) over k words drawn at random, or Σ −log σ(± u_n h) over the nodes n of
// a binary tree on the way to t. Each target moves u and h at once, by −rate times the gradient.
//
// The vector of a word is the mean of its parts: itself, and the n-grams of its letters (Bojanowski 2017). Skip-gram holds
// h while it meets the words around, each of which moves it, and adds what it went to the parts at the end of the window.
//
// Threads own ranges of the text and write the same weights without locks (Recht 2011): a sum may be lost now and then,
// and two runs on several threads differ. On one thread all bits are the same. Plain C interface; compiled behind math.h
// and `WordVectorCall` of networks/compiled_word_vectors.py.

namespace {

constexpr int64_t SENTENCE = 1000;  // most words that a window can see at once
constexpr int64_t LANES = 16;

struct Random {  // SplitMix64 (Steele 2014)
  uint64_t state;
  uint64_t next() {
    state += 0x9E3779B97F4A7C15ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
};

inline uint64_t scaled(uint64_t random, uint64_t count) { return (random >> 32) * count >> 32; }

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

inline Vector load(const float* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

inline void store(float* to, Vector v) { __builtin_memcpy(to, &v, sizeof v); }

inline float total(Vector v) {
  float sum = 0;
  for (int64_t k = 0; k < LANES; ++k) sum += v[k];
  return sum;
}

inline float dot(const float* a, const float* b, int64_t size) {
  Vector sums = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) sums += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < size; ++i) rest += a[i] * b[i];
  return total(sums) + rest;
}

// y += scale x
inline void add(float* y, const float* x, float scale, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store(y + i, load(y + i) + scale * load(x + i));
  for (; i < size; ++i) y[i] += scale * x[i];
}

struct Learner {
  const WordVectorCall<float>& call;
  Random random;
  float *h, *moved, *error, *scores, *steps;
  int64_t* targets;
  double loss = 0, pairs = 0;

  Learner(const WordVectorCall<float>& call, int64_t thread)
      : call(call), random{uint64_t(call.seed) + uint64_t(thread) * 0xD1B54A32D192ED03ull} {
    char* memory = call.memory + thread * call.memory_stride;
    const int64_t wide = (call.size + LANES - 1) / LANES * LANES;
    h = (float*)memory, moved = h + wide, error = moved + wide;
    scores = error + wide, steps = scores + call.most, targets = (int64_t*)(steps + call.most);
  }

  float* row(int64_t number) const { return call.vectors + number * call.size; }
  float* output(int64_t number) const { return call.outputs + number * call.size; }

  int64_t drawn() {
    const uint64_t bits = random.next();
    const int64_t column = scaled(bits, call.words);
    return uint32_t(bits) < call.alias_below[column] ? column : call.alias[column];
  }

  // Fills `targets`, and `steps` with what σ should be there.
  int64_t choose(int64_t target) {
    if (!call.negatives) {
      const int64_t first = call.path_starts[target], count = call.path_starts[target + 1] - first;
      for (int64_t i = 0; i < count; ++i)
        targets[i] = call.path_nodes[first + i], steps[i] = call.path_codes[first + i] ? 0.f : 1.f;
      return count;
    }
    targets[0] = target, steps[0] = 1;
    int64_t count = 1;
    for (int64_t k = 0; k < call.negatives; ++k) {
      const int64_t other = drawn();
      if (other != target) targets[count] = other, steps[count++] = 0;
    }
    return count;
  }

  // One target: moves its outputs, and leaves in `error` by how much h should move.
  void meet(int64_t target) {
    const int64_t count = choose(target), size = call.size;
    for (int64_t i = 0; i < count; ++i) scores[i] = dot(h, output(targets[i]), size);
    const float rate = float(call.rate);
    float nats = 0;
#pragma omp simd reduction(+ : nats)
    for (int64_t i = 0; i < count; ++i) {
      const float side = steps[i] > 0 ? -scores[i] : scores[i];  // −log σ(−side)
      const float low = es_exp(side < 0 ? side : -side);
      nats += (side > 0 ? side : 0.f) + es_log1p(low);
      const float s = (side < 0 ? low : 1.f) / (1.f + low);
      steps[i] = rate * (steps[i] > 0 ? s : -s);
    }
    loss += nats, pairs += 1;
    for (int64_t k = 0; k < size; ++k) error[k] = 0;
    for (int64_t i = 0; i < count; ++i) {
      float* out = output(targets[i]);
      add(error, out, steps[i], size);
      add(out, h, steps[i], size);
    }
  }

  // h += the parts of a word; how many there are.
  int64_t gather(int64_t word) {
    if (!call.parts) {
      add(h, row(word), 1.f, call.size);
      return 1;
    }
    const int64_t first = call.part_starts[word], last = call.part_starts[word + 1];
    for (int64_t p = first; p < last; ++p) add(h, row(call.parts[p]), 1.f, call.size);
    return last - first;
  }

  void spread(int64_t word, const float* by) {
    if (!call.parts) return add(row(word), by, 1.f, call.size);
    for (int64_t p = call.part_starts[word]; p < call.part_starts[word + 1]; ++p)
      add(row(call.parts[p]), by, 1.f, call.size);
  }

  void clear() {
    for (int64_t k = 0; k < call.size; ++k) h[k] = 0, moved[k] = 0;
  }

  void average(int64_t count) {
    if (count < 2) return;
    const float share = 1.f / float(count);
    for (int64_t k = 0; k < call.size; ++k) h[k] *= share;
  }

  void skip_gram(const int32_t* words, int64_t at, int64_t first, int64_t last) {
    clear();
    average(gather(words[at]));
    for (int64_t other = first; other < last; ++other) {
      if (other == at) continue;
      meet(words[other]);
      add(h, error, 1.f, call.size);
      add(moved, error, 1.f, call.size);
    }
    spread(words[at], moved);
  }

  void bag_of_words(const int32_t* words, int64_t at, int64_t first, int64_t last) {
    clear();
    int64_t count = 0;
    for (int64_t other = first; other < last; ++other)
      if (other != at) count += gather(words[other]);
    average(count);
    meet(words[at]);
    for (int64_t other = first; other < last; ++other)
      if (other != at) spread(words[other], error);
  }

  void sentence(const int32_t* words, int64_t count) {
    for (int64_t at = 0; at < count; ++at) {
      const int64_t reach = 1 + int64_t(scaled(random.next(), call.window));
      const int64_t first = at > reach ? at - reach : 0, last = at + reach + 1 < count ? at + reach + 1 : count;
      if (last - first < 2) continue;
      if (call.bag) bag_of_words(words, at, first, last);
      else skip_gram(words, at, first, last);
    }
  }

  void text(int64_t first, int64_t last) {
    int32_t words[SENTENCE];
    while (first < last) {
      int64_t count = 0;
      while (first < last && count < SENTENCE) {
        const int32_t word = call.tokens[first++];
        if (word == call.end) break;
        const uint32_t keep = call.keep[word];
        if (keep == UINT32_MAX || uint32_t(random.next() >> 32) < keep) words[count++] = word;
      }
      sentence(words, count);
    }
  }
};

// Where the share of a thread begins: after the next end of a sentence, if that is near.
int64_t begin_of(const WordVectorCall<float>& call, int64_t thread, int64_t threads) {
  const int64_t near = call.first + (call.last - call.first) * thread / threads;
  if (thread == 0 || thread == threads) return near;
  for (int64_t at = near; at < call.last && at < near + SENTENCE; ++at)
    if (call.tokens[at] == call.end) return at + 1;
  return near;
}

}  // namespace

extern "C" void es_word_vectors(const int64_t* table, int64_t thread, int64_t threads) {
  const auto call = table_at<WordVectorCall<float>>(table);
  Learner learner(call, thread);
  learner.text(begin_of(call, thread, threads), begin_of(call, thread + 1, threads));
  call.sums[thread * 8] = learner.loss, call.sums[thread * 8 + 1] = learner.pairs;
}
