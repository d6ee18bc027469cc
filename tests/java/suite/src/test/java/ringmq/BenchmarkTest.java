package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;
import org.apache.rocketmq.common.message.MessageQueue;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import ringmq.rig.Server;
import ringmq.rig.Until;

/** The benchmark programs of rocketmq-example, for some seconds: they speak RocketMQ's binary header instead of JSON. */
class BenchmarkTest extends SharedServer {
    private static final Pattern PRODUCED = Pattern.compile("Send TPS: [1-9]\\d* .*Send Failed: 0 \\| Response Failed: 0");
    private static final Pattern CONSUMED = Pattern.compile("Consume TPS: [1-9]\\d* .*Consume Fail: 0");

    @TempDir
    private Path dir;

    @Test
    void producerAndConsumer() throws Exception {
        String topic = clients.topic(8);
        Path consumed = dir.resolve("consumer");
        Path produced = dir.resolve("producer");
        // Each prints its first figures after ten seconds.
        try (Server consumer = start(consumed, "Consumer Started", "Consumer", "-t", topic, "-g", Clients.unique("group"), "-ri", "1000");
            Server producer = start(produced, "topic: ", "Producer", "-t", topic, "-w", "4", "-s", "1024", "-ri", "1000")) {
            Until.holds(Clients.LATER, () -> "figures of both: " + read(produced) + read(consumed),
                () -> PRODUCED.matcher(read(produced)).find() && CONSUMED.matcher(read(consumed)).find());
        }
        assertFalse(read(produced).matches("(?s).*Failed: [1-9].*"), read(produced));
        assertFalse(read(consumed).matches("(?s).*Fail: [1-9].*"), read(consumed));
    }

    @Test
    void exactlySoMany() throws Exception {
        String topic = clients.topic(4);
        Path produced = dir.resolve("producer");
        try (Server producer = start(produced, "Complete", "Producer", "-t", topic, "-w", "4", "-s", "500", "-q", "5000",
            "-k", "true", "-l", "3")) {
            assertTrue(read(produced).contains("Send Total: 5000"), read(produced));
        }
        clients.awaitCount(topic, 5000);
        for (MessageQueue queue : clients.queues(topic)) {
            clients.read(queue).forEach(m -> assertEquals(500, m.getBody().length));
        }
    }

    private Server start(Path output, String ready, String program, String... arguments) {
        List<String> command = new ArrayList<>(List.of("java", "-Xmx256m", "-XX:+UseSerialGC", "-Duser.home=" + dir,
            "-cp", System.getProperty("java.class.path"), "org.apache.rocketmq.example.benchmark." + program, "-n", node.namesrv()));
        command.addAll(List.of(arguments));
        return Server.start(command, output, line -> line.contains(ready));
    }

    private static String read(Path file) {
        try {
            return Files.readString(file);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
