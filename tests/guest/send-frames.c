/* send-frames LINK: sends each line of its input, an Ethernet frame in hexadecimal, by a link (packet(7)).
 * Busybox has nothing that says what it likes below IP; a guest that lies needs it. */
#include <arpa/inet.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	char line[8192];
	unsigned char frame[4096];
	struct sockaddr_ll link = {.sll_family = AF_PACKET};
	int out = socket(AF_PACKET, SOCK_RAW, 0);

	if (argc != 2 || out < 0 || !(link.sll_ifindex = (int)if_nametoindex(argv[1]))) {
		fprintf(stderr, "usage: send-frames LINK\n");
		return 2;
	}
	while (fgets(line, sizeof line, stdin)) {
		size_t length = strspn(line, "0123456789abcdef") / 2;
		for (size_t at = 0; at < length; at++) {
			sscanf(line + 2 * at, "%2hhx", &frame[at]);
		}
		if (sendto(out, frame, length, 0, (struct sockaddr *)&link, sizeof link) < 0) {
			perror(argv[1]);
			return 1;
		}
	}
	return 0;
}
