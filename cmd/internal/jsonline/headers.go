package jsonline

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/mvalve/mvalve/queue"
)

// base64Mark is the third element of a header whose name and value are base64,
// because one of them is not UTF-8.
const base64Mark = "base64"

// Pairs returns headers as a line shows them: pairs, in order.
func Pairs(headers queue.Headers) [][]string {
	var out [][]string
	for _, h := range headers {
		if utf8.ValidString(h.Name) && utf8.ValidString(h.Value) {
			out = append(out, []string{h.Name, h.Value})
			continue
		}
		encode := base64.StdEncoding.EncodeToString
		out = append(out, []string{encode([]byte(h.Name)), encode([]byte(h.Value)), base64Mark})
	}
	return out
}

// headers reads a list of pairs, or an object whose order is kept and whose
// values are strings or lists of strings.
func (f *fields) headers(value json.RawMessage) error {
	var err error
	switch value[0] {
	case '[':
		f.Headers, err = headerPairs(value)
	case '{':
		f.Headers, err = headerObject(value)
	default:
		err = errors.New(`neither a list of pairs such as [["To","a,b"]] nor an object such as {"To":"a,b"}`)
	}
	return err
}

func headerPairs(value json.RawMessage) (queue.Headers, error) {
	var raw [][]json.RawMessage
	if err := json.Unmarshal(value, &raw); err != nil {
		return nil, errors.New(`not a list of pairs such as [["To","a,b"]]`)
	}
	var headers queue.Headers
	for n, pair := range raw {
		words := make([]string, len(pair))
		for i := range pair {
			if err := text(pair[i], &words[i]); err != nil {
				return nil, fmt.Errorf("pair %d: %w", n+1, err)
			}
		}
		if len(words) == 3 && words[2] == base64Mark {
			for i := range 2 {
				decoded, err := base64.StdEncoding.DecodeString(words[i])
				if err != nil {
					return nil, fmt.Errorf("pair %d: not base64", n+1)
				}
				words[i] = string(decoded)
			}
			words = words[:2]
		}
		if len(words) != 2 {
			return nil, fmt.Errorf(`pair %d has %d elements; a pair is a name and a value, such as ["To","a,b"]`, n+1, len(words))
		}
		headers = append(headers, queue.Header{Name: words[0], Value: words[1]})
	}
	return headers, nil
}

func headerObject(value json.RawMessage) (queue.Headers, error) {
	decoder := json.NewDecoder(bytes.NewReader(value))
	_, _ = decoder.Token() // the brace, which the caller saw
	var headers queue.Headers
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return nil, err
		}
		values := []json.RawMessage{raw}
		if raw[0] == '[' {
			if err := json.Unmarshal(raw, &values); err != nil {
				return nil, err
			}
		}
		for _, v := range values {
			h := queue.Header{Name: name.(string)}
			if err := text(v, &h.Value); err != nil {
				return nil, fmt.Errorf("%q: %w", h.Name, err)
			}
			headers = append(headers, h)
		}
	}
	return headers, nil
}
