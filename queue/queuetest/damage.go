package queuetest

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mvalve/mvalve/queue"
)

// Damager is implemented by stores under test that can change what is stored.
// Damage replaces one column of the row that ref names by what change makes of
// it; numbers are 8 bytes, big-endian. It reports whether the column can hold
// that at all.
type Damager interface {
	Damage(t *testing.T, ref queue.Ref, column string, change func(old []byte) []byte) bool
}

var damageCases = []testCase{
	{"every bit", damageEveryBit},
	{"bits of large bodies", damageLarge},
	{"bytes missing and added", damageLength},
	{"index of another destination", damageIndex},
}

// kept are the columns that must not change while a message waits.
var kept = []string{"id", "destination", "priority", "lane", "expires_at", "enqueued_at", "hold", "size", "checksum", "headers", "body"}

func (f *fixture) damager() Damager {
	d, ok := f.store.(Damager)
	if !ok {
		f.Skip("store under test cannot damage a row")
	}
	return d
}

// full returns a message with something in every column.
func (f *fixture) full() *queue.Message {
	m := f.message("dé")
	m.Lane = queue.Lane(1 + len(m.Body)%3)
	m.Priority, m.Hold, m.ExpiresAt = queue.Level(7), time.Second, f.now.Add(time.Hour)
	m.Headers = queue.Headers{{Name: "n", Value: "v"}, {Name: "m", Value: ""}}
	m.Body = []byte("body")
	return m
}

func flip(bit int) func([]byte) []byte {
	return func(old []byte) []byte {
		b := slices.Clone(old)
		b[bit/8] ^= 0x80 >> (bit % 8)
		return b
	}
}

// damageEveryBit flips each bit of each column that matters, of a message per
// bit, and finds every one of them, between neighbours that are served.
func damageEveryBit(f *fixture) {
	d := f.damager()
	for _, column := range kept {
		bits := 0
		d.Damage(f.T, f.put(f.full())[0], column, func(old []byte) []byte {
			bits = 8 * len(old)
			return old
		})
		if bits == 0 {
			f.Fatalf("column %s is empty", column)
		}
		f.purge()
		damaged := make(map[queue.ID]int)
		var msgs []*queue.Message
		for range 2 * bits {
			msgs = append(msgs, f.full())
		}
		for i, ref := range f.put(msgs...) {
			if i%2 == 1 && d.Damage(f.T, ref, column, flip(i/2)) {
				id := ref.ID
				if column == "id" {
					id = queue.ID(flip(i / 2)(id[:]))
				}
				damaged[id] = i / 2
			}
		}
		if len(damaged) < 8 {
			f.Fatalf("column %s: only %d bits could be flipped", column, len(damaged))
		}
		f.findDamaged(column, len(msgs), damaged)
	}
}

// findDamaged leases everything as a reader would and checks that exactly the
// damaged rows are told from the others, and that they can become dead letters.
func (f *fixture) findDamaged(what string, rows int, damaged map[queue.ID]int) {
	f.Helper()
	token := f.id()
	var settles []queue.Settle
	var seen []int
	for _, l := range f.leaseFor(time.Minute, token, f.everything()...) {
		bit, hit := damaged[l.Message.ID]
		switch {
		case hit && l.Err == nil:
			f.Errorf("%s, bit %d: a damaged message would be served", what, bit)
		case !hit && l.Err != nil:
			f.Errorf("%s: a sound message: %v", what, l.Err)
		case hit:
			f.wantError(l.Err, queue.ErrCorrupt)
			seen = append(seen, bit)
			settles = append(settles, queue.Settle{Ref: l.Ref, Verb: queue.Kill, Token: token, Reason: l.Err.Error()})
		}
		rows--
	}
	if rows != 0 || len(seen) != len(damaged) {
		f.Errorf("%s: %d rows are missing, %d of %d damaged ones were seen", what, rows, len(seen), len(damaged))
	}
	f.apply(&queue.Change{Settle: settles})
	letters := f.dead()
	if len(letters) != len(damaged) {
		f.Errorf("%s: %d dead letters, want %d", what, len(letters), len(damaged))
	}
	for _, l := range letters {
		if l.Err == nil || !strings.Contains(l.Reason, "damaged") {
			f.Errorf("%s: dead letter with reason %q, %v", what, l.Reason, l.Err)
		}
	}
	f.purge()
}

// everything returns all rows by a scan.
func (f *fixture) everything() (refs []queue.Ref) {
	for table := queue.Emergency; table <= queue.Incoming; table++ {
		refs = append(refs, f.scan(table)...)
	}
	return refs
}

// purge empties the store.
func (f *fixture) purge() {
	f.Helper()
	f.pass(2 * time.Minute) // leases run out
	for table := queue.Emergency; table <= queue.Dead; table++ {
		if _, err := f.store.(queue.Admin).Move(f.ctx, f.now, queue.Move{From: table, Purge: true}); err != nil {
			f.Fatal(err)
		}
	}
}

func damageLarge(f *fixture) {
	d := f.damager()
	r := rand.New(rand.NewPCG(1, 2))
	damaged := make(map[queue.ID]int)
	const n = 12
	for range n {
		m := f.message("a")
		m.Body = make([]byte, 200_000)
		for i := range m.Body {
			m.Body[i] = byte(r.Uint32())
		}
		ref, bit := f.put(m)[0], r.IntN(8*len(m.Body))
		if r.IntN(2) == 0 {
			d.Damage(f.T, ref, "body", flip(bit))
			damaged[ref.ID] = bit
		}
	}
	f.findDamaged("large body", n, damaged)
}

func damageLength(f *fixture) {
	d := f.damager()
	var n int
	damaged := make(map[queue.ID]int)
	for _, column := range []string{"destination", "headers", "body"} {
		for _, change := range []func([]byte) []byte{
			func([]byte) []byte { return []byte{} },
			func(old []byte) []byte { return old[:len(old)-1] },
			func(old []byte) []byte { return old[1:] },
			func(old []byte) []byte { return append(slices.Clone(old), 0) },
			func(old []byte) []byte { return append([]byte{0}, old...) },
		} {
			ref := f.put(f.full())[0]
			n++
			if d.Damage(f.T, ref, column, change) {
				damaged[ref.ID] = n
			}
		}
	}
	f.findDamaged("length", n, damaged)
}

// damageIndex: a reference that names another destination than its row, as a
// damaged index gives it, must not make its message leave under that limit.
func damageIndex(f *fixture) {
	f.damager()
	refs := f.put(f.message("a"), f.message("b"))
	refs[0].Destination = "b"
	won := f.leaseFor(time.Minute, f.id(), refs...)
	if len(won) != 2 || won[1].Err != nil {
		f.Fatalf("leased %+v", won)
	}
	f.wantError(won[0].Err, queue.ErrCorrupt)
}

// Bytes returns a number in the form that Damage wants.
func Bytes(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// Number is the inverse of Bytes.
func Number(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) }
