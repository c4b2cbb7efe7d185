package memcached

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/mvalve/mvalve/state"
)

// Epoch markers. Three rules make a loss visible, whenever it happens:
//
//  1. A read asks for the keys and then for the marker, in this order, in one
//     request. A server answers in the order asked, so if the marker is there
//     it has been there since before the keys were looked up, or a wipe came
//     first and the marker is new: a key missing because of a wipe is always seen
//     together with no marker, or with one that is younger than the wipe. The
//     other way round, a wipe between the two look-ups would show the old marker
//     with the missing key, which says "never used".
//  2. A key that was read as missing is written with add, and add also succeeds
//     if the key was used and wiped meanwhile. So after an add the marker is read
//     again; if it is not the same, the write does not count and is repeated.
//  3. Every value carries the nonce of the marker under which it was computed.
//     What is left behind by a write that rule 2 refused (or whose writer died
//     before it looked) bears the nonce of a past epoch and reads as missing.
//
// The server decides by cas numbers, not by its clock, what a flush_all wipes,
// so that key and marker go together. (flush_all with a delay goes by access
// times, and may spare the marker; do not use it on these servers.)
//
// A change with cas needs no second look: a wiped key answers NOT_FOUND. Only a
// restarted server could have given the same cas number again, and then the
// request went over a new connection: after new connections the marker is read
// again as after an add.

// marker is the epoch marker of a server.
type marker struct {
	nonce uint64
	// lost: what was stored before may be forgotten. Zero: nothing ever was.
	lost time.Time
	// evictions is the server's counter up to which lost holds.
	evictions uint64
	item      *memcache.Item // as stored
}

const markerSize = 8 + 8 + 8

// noTime stands for the zero time; as a date it is out of reach.
const noTime = 0

func (m marker) encode() []byte {
	b := make([]byte, 0, markerSize)
	b = binary.BigEndian.AppendUint64(b, m.nonce)
	micros := int64(noTime)
	if !m.lost.IsZero() {
		micros = m.lost.UnixMicro()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(micros))
	return binary.BigEndian.AppendUint64(b, m.evictions)
}

func decodeMarker(item *memcache.Item) (marker, bool) {
	b := item.Value
	if len(b) != markerSize {
		return marker{}, false
	}
	m := marker{nonce: binary.BigEndian.Uint64(b), evictions: binary.BigEndian.Uint64(b[16:]), item: item}
	if micros := int64(binary.BigEndian.Uint64(b[8:])); micros != noTime {
		m.lost = time.UnixMicro(micros).UTC()
	}
	return m, true
}

// snapshot is what one request found on a server.
type snapshot struct {
	srv    *server
	marker marker
	items  map[string]*memcache.Item
	dials  int64 // srv.dials before the request
}

// nonceSize is the length of the epoch in front of every value.
const nonceSize = 8

// value tells what the snapshot knows of a key. now is the pipe's clock if known.
func (sn *snapshot) value(name string, now time.Time) value {
	v := value{snap: sn, item: sn.items[name]}
	if v.item == nil {
		v.entry = state.Entry{Lost: sn.marker.lost}
		return v
	}
	if len(v.item.Value) >= nonceSize && binary.BigEndian.Uint64(v.item.Value) == sn.marker.nonce {
		v.entry = state.Entry{Data: v.item.Value[nonceSize:]}
		return v
	}
	// Left over from a past epoch (rule 3). Whoever wrote it did so before now.
	v.entry = state.Entry{Lost: sn.marker.lost}
	if now.After(v.entry.Lost) {
		v.entry.Lost = now
	}
	return v
}

// markerTries bounds how often a read starts again because the marker went
// missing: each time is a wipe.
const markerTries = 5

// read asks a server for names and its marker, in this order (rule 1). A missing
// marker is written, and all is read again.
func (s *Store) read(ctx context.Context, srv *server, names []string) (*snapshot, error) {
	request := append(append(make([]string, 0, len(names)+1), names...), srv.marker)
	for range markerTries {
		snap, err := srv.get(ctx, request)
		if err != nil {
			return nil, srv.readError(err)
		}
		item := snap.items[srv.marker]
		if item != nil {
			var ok bool
			if snap.marker, ok = decodeMarker(item); ok {
				return snap, nil
			}
		}
		if err := s.addMarker(ctx, srv, item); err != nil {
			return nil, err
		}
	}
	return nil, srv.readError(errors.New("its epoch marker does not stay"))
}

// get runs one request. A connection that died while idle is noticed only now;
// the request is repeated once on a fresh one.
func (srv *server) get(ctx context.Context, names []string) (*snapshot, error) {
	l, err := srv.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer srv.release(l)
	snap := &snapshot{srv: srv}
	request := func(c *memcache.Client) (err error) {
		snap.dials = srv.dials.Load()
		snap.items, err = c.GetMulti(names)
		return err
	}
	err = l.do(ctx, request)
	if err != nil && !nothingSent(err) && ctx.Err() == nil {
		err = l.do(ctx, request)
	}
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// addMarker starts an epoch. Losing against another reader who starts one is
// as good. broken is a marker that nobody can read, to be replaced.
func (s *Store) addMarker(ctx context.Context, srv *server, broken *memcache.Item) error {
	lost, err := s.cfg.MarkerTime(ctx)
	if err != nil {
		return srv.readError(fmt.Errorf("time for its epoch marker: %w", err))
	}
	var nonce [8]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return srv.readError(err)
	}
	evictions, err := srv.evictions(ctx)
	if err != nil {
		return srv.readError(err)
	}
	m := marker{nonce: binary.BigEndian.Uint64(nonce[:]), lost: lost, evictions: evictions}
	err = srv.do(ctx, func(c *memcache.Client) error {
		item := &memcache.Item{Key: srv.marker, Value: m.encode()}
		if broken == nil {
			return c.Add(item)
		}
		item.CasID = broken.CasID
		return c.CompareAndSwap(item)
	})
	if others(err) {
		return nil
	}
	if err != nil {
		return srv.readError(fmt.Errorf("epoch marker: %w", err))
	}
	if lost.IsZero() {
		s.log.Debug("memcached server prepared", "server", srv.name)
	} else {
		s.log.Warn("memcached server has no values of this pipe: new, wiped or restarted; limits count as used up to this time", "server", srv.name, "lost", lost)
	}
	return nil
}

// others tells whether a conditional write failed because somebody else was faster.
func others(err error) bool {
	return errors.Is(err, memcache.ErrNotStored) || errors.Is(err, memcache.ErrCASConflict) || errors.Is(err, memcache.ErrCacheMiss)
}
