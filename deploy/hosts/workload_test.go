//go:build docker

package hosts

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

// work is what this program does outside of the tests, as the image of the containers that take ports, and beyond the gateway:
//
//	serve ADDRESS...           keeps TCP connections until their clients close them
//	hold NETWORK ADDRESS N     holds N sockets. If there is no port for one, it tries again
func work(args []string) error {
	if args[0] == "serve" {
		for _, address := range args[1:] {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			go serve(l)
		}
		forever()
	}
	most, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	var held []net.Conn
	for len(held) < most {
		conn, err := net.DialTimeout(args[1], args[2], 5*time.Second)
		if err != nil {
			fmt.Println(len(held), "sockets:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		held = append(held, conn)
	}
	fmt.Println(len(held), "sockets")
	forever()
	return nil
}

// forever does not return. Go would end a program in which all wait.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// serve accepts connections.
func serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}()
	}
}
