package mysql_test

import (
	"fmt"

	"github.com/mvalve/mvalve/queue/mysql"
)

// A password with special characters is percent-encoded in a URL, and shown nowhere.
func ExampleParseURL() {
	config, err := mysql.ParseURL("mysql://mailer:p%40ss%2Fword@db.example/mail?tls=true")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(config)
	fmt.Println(config.User, config.Password == "p@ss/word", config.TLS)
	// Output:
	// mysql://db.example:3306/mail
	// mailer true true
}
