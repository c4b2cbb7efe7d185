package checker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// maxLine bounds a line of a log in bytes: a body of 16 MiB in which every byte
// is written as an escape of six.
const maxLine = 100 << 20

// ReadLog reads the JSON lines that mvalve-reader prints and returns the stamps
// per destination, in microseconds since 1970 UTC. Of each line only destination
// and dispatched_at matter; blank lines are skipped. An error names the line.
func ReadLog(r io.Reader) (map[string][]int64, error) {
	log := make(map[string][]int64)
	scanner := bufio.NewScanner(r)
	scanner.Buffer(make([]byte, 64<<10), maxLine)
	number := 0
	for scanner.Scan() {
		number++
		text := bytes.TrimSpace(scanner.Bytes())
		if len(text) == 0 {
			continue
		}
		var line struct {
			Destination  string `json:"destination"`
			DispatchedAt string `json:"dispatched_at"`
		}
		if err := json.Unmarshal(text, &line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if line.Destination == "" {
			return nil, fmt.Errorf("line %d: field destination is missing", number)
		}
		at, err := time.Parse(time.RFC3339Nano, line.DispatchedAt)
		if year := at.UTC().Year(); err != nil || year < 0 || year > 9999 {
			return nil, fmt.Errorf("line %d: field dispatched_at %.40q is not a time such as 2006-01-02T15:04:05.000000Z", number, line.DispatchedAt)
		}
		log[line.Destination] = append(log[line.Destination], at.UnixMicro())
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", number+1, err)
	}
	return log, nil
}
