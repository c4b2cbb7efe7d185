package memcached_test

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/mvalve/mvalve/state"
	"github.com/mvalve/mvalve/state/memcached"
)

// Count to one more than anybody has counted before, whoever else does the same.
func Example() {
	ctx := context.Background()
	store, err := memcached.Open(ctx, memcached.Config{
		Servers: []string{"127.0.0.1:11211"},
		Prefix:  "example:1:",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close()
	var count int
	errs := store.Update(ctx, time.Now(), []string{"visits"}, []time.Duration{time.Minute}, func(_ int, old state.Entry) []byte {
		count, _ = strconv.Atoi(string(old.Data)) // absent counts as 0
		count++
		return strconv.AppendInt(nil, int64(count), 10)
	})
	if errs != nil {
		fmt.Println(errs[0])
		return
	}
	fmt.Println("visits:", count)
}
