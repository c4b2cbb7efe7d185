package auth_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/mvalve/mvalve/auth"
)

func Example() {
	dir, err := os.MkdirTemp("", "auth")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	hash, err := auth.Hash("open sesame")
	if err != nil {
		log.Fatal(err)
	}
	path := filepath.Join(dir, "users")
	if err := os.WriteFile(path, []byte("shop:"+hash+":send\n"), 0o600); err != nil {
		log.Fatal(err)
	}

	users, err := auth.Open(path, nil)
	if err != nil {
		log.Fatal(err)
	}
	user, ok := users.Check("shop", "open sesame")
	fmt.Println(user.Name, user.Rights, ok, user.Rights.Has(auth.Subscribe))
	_, ok = users.Check("shop", "guess")
	fmt.Println(ok)
	// Output:
	// shop send true false
	// false
}
