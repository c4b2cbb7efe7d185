package sqlite

import (
	"database/sql/driver"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mvalve/mvalve/queue"
)

// TestPlans holds every statement over message tables to its key or index: a
// scan would make the cost grow with the backlog.
func TestPlans(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "plan.db"))
	texts := map[string]int{}
	for table := queue.Emergency; table <= queue.Incoming; table++ {
		for _, o := range []op{opAck, opRelease, opExtend, opKill, opDelete, opRead, opLease} {
			for _, n := range []int{1, 256} {
				texts[buildText(o, table, n)]++
			}
			if o == opAck || o == opRelease || o == opKill {
				texts[buildText(o+opFree, table, 1)]++
			}
		}
		texts[scanTexts[table]]++
		texts[headPageTexts[table]]++
		if table != queue.Timed {
			texts[buildText(opRetry, table, 1)]++
			texts[bestTexts[table]]++
		}
	}
	texts[buildText(opDelay, queue.Timed, 1)]++
	texts[bestTimedNext]++
	texts[bestTimedRows]++
	err := s.read(t.Context(), func(c *conn) error {
		for text := range texts {
			args := make([]any, strings.Count(text, "?"))
			err := c.query(t.Context(), "EXPLAIN QUERY PLAN "+text, args, func(row []driver.Value) error {
				step := textOf(row[3])
				scansTable := strings.HasPrefix(step, "SCAN q_") || strings.Contains(step, "TEMP B-TREE")
				if scansTable {
					t.Errorf("%.120s\n  does %s", text, step)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
