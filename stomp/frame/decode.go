package frame

import "bytes"

// decode makes the scanned frame the one to return. It unescapes in place.
func (r *Reader) decode() (*Frame, error) {
	r.phase = returned
	b := r.buf[r.start:r.end]
	f := &r.frame
	f.Command, f.Header = r.command, f.Header[:0]
	escaped := r.version >= V11 && !r.command.literal() && // S18, S25
		bytes.IndexByte(b[:r.bodyAt], '\\') >= 0
	for _, l := range r.lines {
		name, value := b[l.start:l.colon:l.colon], b[l.colon+1:l.end:l.end]
		if escaped {
			var wrong string
			if name, wrong = unescape(r.version, name); wrong == "" {
				value, wrong = unescape(r.version, value)
			}
			if wrong != "" {
				r.fail(Syntax, wrong)
				return nil, r.err
			}
		}
		f.Header = append(f.Header, Field{Name: name, Value: value})
		r.decoded++
	}
	if r.padded() {
		for i := range f.Header {
			f.Header[i].Value = trimBlanks(f.Header[i].Value)
		}
	}
	return r.decodeBody(b)
}

func (r *Reader) decodeBody(b []byte) (*Frame, error) {
	f := &r.frame
	f.Body, f.ownBody = nil, false
	switch {
	case r.length <= 0:
	case !r.command.HasBody():
		if r.version >= V11 { // S28, S29
			r.fail(Syntax, r.command.String()+" has no body: end the frame with NUL right after the empty line")
			return nil, r.err
		}
	case r.isLong:
		f.Body, f.ownBody = r.long[:r.length:r.length], true
	default:
		f.Body = b[r.bodyAt : r.bodyAt+r.length : r.bodyAt+r.length]
	}
	return f, nil
}

// padded reports whether blanks before values are padding (S17): in 1.0, and
// in what opens a connection if it speaks of no version, which means 1.0.
func (r *Reader) padded() bool {
	if r.version != 0 {
		return r.version == V10
	}
	name := "accept-version"
	if r.command == Connected {
		name = "version"
	}
	_, ok := r.frame.Get(name)
	return !ok
}

func trimBlanks(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// receipt returns what the frame at hand asks for, as far as it is scanned.
func (r *Reader) receipt() string {
	for i := range r.decoded {
		if string(r.frame.Header[i].Name) == "receipt" {
			return string(r.frame.Header[i].Value)
		}
	}
	b := r.buf[r.start:r.end]
	for _, l := range r.lines[r.decoded:] {
		if string(b[l.start:l.colon]) != "receipt" {
			continue
		}
		value := bytes.Clone(b[l.colon+1 : l.end])
		if r.version < V11 {
			return string(trimBlanks(value))
		}
		if r.command.literal() {
			return string(value)
		}
		value, _ = unescape(r.version, value)
		return string(value)
	}
	return ""
}
