package ringmq;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Random;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.compression.CompressionType;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.sysflag.MessageSysFlag;
import org.apache.rocketmq.remoting.protocol.ResponseCode;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What a message may carry comes back byte by byte: large, compressed, in any language; what is too large is refused. */
class BodyTest extends SharedServer {
    /** RocketMQ's maxMessageSize. */
    private static final int BODY_BYTES_MAX = 4 * 1024 * 1024;
    private static final int PROPERTIES_BYTES = 16 * 1024;

    private static final List<String> LANGUAGES = List.of("消息队列", "メッセージ", "메시지", "Übergröße", "сообщение", "رسالة", "हिन्दी",
        "😀🚀👩‍👩‍👧‍👦", "ﬀ\u0301\u200b", "𝄞");

    @Test
    void largest() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = uncompressed();
        byte[] body = random(BODY_BYTES_MAX);
        Message message = new Message(topic, body);
        String value = "v".repeat(PROPERTIES_BYTES - "filler".length() - 2);
        message.putUserProperty("filler", value);
        assertEquals(SendStatus.SEND_OK, producer.send(message).getSendStatus());
        SendResult small = producer.send(new Message(topic, Clients.bytes("behind it")));
        assertEquals(1, small.getQueueOffset());

        List<MessageExt> stored = clients.read(topic);
        assertArrayEquals(body, stored.get(0).getBody());
        assertEquals(value, stored.get(0).getUserProperty("filler"));
        assertEquals("behind it", Clients.text(stored.get(1)));
    }

    @Test
    void oneByteMore() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = uncompressed();
        MQBrokerException refused = assertThrows(MQBrokerException.class,
            () -> producer.send(new Message(topic, random(BODY_BYTES_MAX + 1))));
        assertEquals(ResponseCode.MESSAGE_ILLEGAL, refused.getResponseCode());
        assertEquals(0, producer.send(new Message(topic, random(10))).getQueueOffset(), "nothing of it was stored");
    }

    @Test
    void tooManyProperties() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        Message message = new Message(topic, Clients.bytes("small"));
        message.putUserProperty("filler", "v".repeat(Short.MAX_VALUE + 1));
        MQBrokerException refused = assertThrows(MQBrokerException.class, () -> producer.send(message));
        assertEquals(ResponseCode.MESSAGE_ILLEGAL, refused.getResponseCode());
        assertEquals(0, producer.send(new Message(topic, random(10))).getQueueOffset(), "nothing of it was stored");
    }

    @ParameterizedTest
    @EnumSource(CompressionType.class)
    void compressed(CompressionType type) throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer(settings -> {
            settings.setCompressType(type);
            settings.setCompressMsgBodyOverHowmuch(1000);
        });
        byte[] large = Clients.bytes("面白い text ".repeat(20_000));
        producer.send(new Message(topic, large));
        producer.send(new Message(topic, Clients.bytes("left as it is")));

        List<MessageExt> stored = clients.read(topic);
        assertArrayEquals(large, stored.get(0).getBody());
        // The client has taken the flag away with the compression; the kind is still there.
        assertEquals(type, MessageSysFlag.getCompressionType(stored.get(0).getSysFlag()));
        assertTrue(stored.get(0).getStoreSize() < large.length / 10, "it was stored compressed: " + stored.get(0).getStoreSize());
        assertEquals("left as it is", Clients.text(stored.get(1)));
    }

    @Test
    void anyLanguage() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer producer = clients.producer();
        for (String word : LANGUAGES) {
            Message message = new Message(topic, word, word + " " + word + "2", Clients.bytes(word));
            message.putUserProperty("name-" + word, "value-" + word);
            message.setFlag(word.hashCode());
            assertEquals(SendStatus.SEND_OK, producer.send(message).getSendStatus());
        }
        List<MessageExt> stored = clients.read(topic);
        assertEquals(LANGUAGES, Clients.texts(stored));
        for (MessageExt message : stored) {
            String word = Clients.text(message);
            assertEquals(word, message.getTags());
            assertEquals(word + " " + word + "2", message.getKeys());
            assertEquals("value-" + word, message.getUserProperty("name-" + word));
            assertEquals(word.hashCode(), message.getFlag());
        }
    }

    @Test
    void whatTheBrokerAdds() throws Exception {
        String topic = clients.topic(1);
        long before = System.currentTimeMillis();
        SendResult result = clients.producer().send(new Message(topic, Clients.bytes("x")));
        long after = System.currentTimeMillis();

        MessageExt message = clients.read(topic).get(0);
        assertEquals(result.getMsgId(), message.getProperty(MessageConst.PROPERTY_UNIQ_CLIENT_MESSAGE_ID_KEYIDX));
        assertEquals(result.getMsgId(), message.getMsgId());
        assertEquals("DefaultCluster", message.getProperty(MessageConst.PROPERTY_CLUSTER));
        assertEquals("DefaultRegion", result.getRegionId());
        assertTrue(before <= message.getBornTimestamp() && message.getBornTimestamp() <= after);
        assertTrue(before <= message.getStoreTimestamp() && message.getStoreTimestamp() <= after);
        assertEquals("127.0.0.1", message.getBornHostString());
        assertEquals(node.broker(), message.getStoreHost().toString().replaceFirst("^.*/", ""));
        assertEquals(0, message.getReconsumeTimes());
        assertFalse(message.getStoreSize() <= 91, "the size of the whole record");
    }

    private DefaultMQProducer uncompressed() throws Exception {
        return clients.producer(settings -> {
            settings.setMaxMessageSize(2 * BODY_BYTES_MAX);
            settings.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
            settings.setRetryTimesWhenSendFailed(0);
        });
    }

    private static byte[] random(int bytes) {
        byte[] body = new byte[bytes];
        new Random(bytes).nextBytes(body);
        return body;
    }
}
