package frame

import (
	"slices"
	"strconv"
)

const contentLength = "content-length"

// Append appends f as it goes over the wire in version v: command, headers in
// order, content-length if there is a body (S35), body, NUL. Headers are
// escaped as AppendHeader does, and not at all in CONNECT, STOMP and CONNECTED
// (S25). A content-length among f.Header is left out, for it may be wrong; so
// is the body of a command that has none (S28), and a header without a name.
func Append(dst []byte, v Version, f *Frame) []byte {
	if f.Command.literal() {
		v = 0
	}
	dst = AppendCommand(dst, f.Command)
	names, values := v.tables()
	for i := range f.Header {
		dst = appendLine(dst, names, values, f.Header[i].Name, f.Header[i].Value)
	}
	if !f.Command.HasBody() {
		return AppendBody(dst, nil)
	}
	return AppendBody(dst, f.Body)
}

// AppendCommand appends the first line of a frame built by hand; AppendHeader
// and one AppendBody follow.
func AppendCommand(dst []byte, c Command) []byte {
	dst = append(dst, c.String()...)
	return append(dst, '\n')
}

// AppendHeader appends one header line, escaped as version v wants it (S24);
// the zero Version does not escape and is the one for CONNECTED.
//
// Whatever the bytes are, the line stays one line with that name (S26). What a
// version cannot say becomes a question mark: NUL and bytes that are not UTF-8
// in every version, CR in 1.1, CR and LF and a colon in a name in 1.0. An
// empty name cannot be said either, and content-length is AppendBody's to say:
// nothing is appended.
func AppendHeader(dst []byte, v Version, name, value string) []byte {
	return appendHeader(dst, v, name, value)
}

// AppendHeaderBytes is AppendHeader for bytes.
func AppendHeaderBytes(dst []byte, v Version, name, value []byte) []byte {
	return appendHeader(dst, v, name, value)
}

func appendHeader[T string | []byte](dst []byte, v Version, name, value T) []byte {
	names, values := v.tables()
	return appendLine(dst, names, values, name, value)
}

func appendLine[T string | []byte](dst []byte, names, values *escapes, name, value T) []byte {
	if len(name) == 0 || len(name) == len(contentLength) && string(name) == contentLength {
		return dst
	}
	if !plain(names, name) || !plain(values, value) {
		dst = append(appendEscaped(dst, names, name), ':')
		return append(appendEscaped(dst, values, value), '\n')
	}
	n := len(dst)
	dst = slices.Grow(dst, len(name)+len(value)+2)
	dst = dst[:n+len(name)+len(value)+2]
	line := dst[n:]
	copy(line, name)
	line[len(name)] = ':'
	copy(line[len(name)+1:], value)
	line[len(line)-1] = '\n'
	return dst
}

// AppendHeaderInt appends a header line with a number. The name must need no
// escape.
func AppendHeaderInt(dst []byte, name string, value int64) []byte {
	dst = append(dst, name...)
	dst = append(dst, ':')
	dst = strconv.AppendInt(dst, value, 10)
	return append(dst, '\n')
}

// AppendBody ends a frame: content-length unless body is empty, the blank
// line, the body and NUL.
func AppendBody(dst, body []byte) []byte {
	if len(body) == 0 {
		return append(dst, '\n', 0)
	}
	dst = append(dst, "content-length:"...)
	dst = strconv.AppendInt(dst, int64(len(body)), 10)
	dst = append(dst, '\n', '\n')
	dst = append(dst, body...)
	return append(dst, 0)
}
