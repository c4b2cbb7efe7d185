package stomp

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"

	"github.com/mvalve/mvalve/queue"
)

// A message-id, which is the value of the ack header, too, is
//
//	01942f3e-6c00-7000-8000-000000000001-1a-9f3c
//
// the message's id, the serial number of this delivery in base 36, and a check
// that tells ids issued by a server like this from others: an ACK that comes too
// late, even over another connection after a restart, never ends a later delivery
// of the same message, and no list of old ids is kept to tell it from a bogus one
// (S92). Serials begin at the time of the server's start. Ids hold nothing that
// needs escaping.

const uuidLen = 36

// appendToken appends the message-id of a delivery. Topics have the zero id.
func (s *Server) appendToken(dst []byte, id queue.ID, serial uint64) []byte {
	dst = appendUUID(dst, id)
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, serial, 36)
	dst = append(dst, '-')
	var sum [2]byte
	binary.BigEndian.PutUint16(sum[:], s.check(id, serial))
	return hex.AppendEncode(dst, sum[:])
}

// check is a checksum, no secret: what it must not do is confirm what was made up.
func (s *Server) check(id queue.ID, serial uint64) uint16 {
	const k = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
	h := (binary.BigEndian.Uint64(id[:8]) ^ k) * k
	h = (h ^ h>>29 ^ binary.BigEndian.Uint64(id[8:])) * k
	h = (h ^ h>>32 ^ serial) * k
	return uint16(h >> 48)
}

// parseToken returns what a message-id stands for; ok tells that a server issued it.
func (s *Server) parseToken(token []byte) (id queue.ID, serial uint64, ok bool) {
	if len(token) < uuidLen+len("-0-0000") || len(token) > 64 || token[uuidLen] != '-' {
		return id, 0, false
	}
	rest := token[uuidLen+1:]
	number, sum := rest[:len(rest)-5], rest[len(rest)-5:]
	for _, c := range number {
		digit := uint64(0)
		switch {
		case c >= '0' && c <= '9':
			digit = uint64(c - '0')
		case c >= 'a' && c <= 'z':
			digit = uint64(c-'a') + 10
		default:
			return id, 0, false
		}
		serial = 36*serial + digit
	}
	var check [2]byte
	if _, err := hex.Decode(check[:], sum[1:]); err != nil || sum[0] != '-' || !parseUUID(&id, token[:uuidLen]) {
		return id, 0, false
	}
	return id, serial, binary.BigEndian.Uint16(check[:]) == s.check(id, serial)
}

func appendUUID(dst []byte, id queue.ID) []byte {
	dst = hex.AppendEncode(dst, id[0:4])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[4:6])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[6:8])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[8:10])
	dst = append(dst, '-')
	return hex.AppendEncode(dst, id[10:16])
}

func parseUUID(id *queue.ID, b []byte) bool {
	if b[8] != '-' || b[13] != '-' || b[18] != '-' || b[23] != '-' {
		return false
	}
	at := 0
	for _, part := range [][2]int{{0, 8}, {9, 13}, {14, 18}, {19, 23}, {24, 36}} {
		n, err := hex.Decode(id[at:], b[part[0]:part[1]])
		if err != nil {
			return false
		}
		at += n
	}
	return true
}
